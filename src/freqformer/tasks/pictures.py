"""What tasks draw of their results, as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..data import printable


def draw_confusion(counts: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix as shares of the true class.

    Args:
        counts: images (true class, predicted class).
        names: the classes' names, in order.
        path: the PNG to write.
    """
    # A folder's name may hold what no font has, and dollars would be read as mathematics.
    names = [printable(name).replace("$", r"\$") for name in names]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(14.0, 3 + 0.45 * len(names))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    size = 9 if len(names) <= 20 else 5
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    if len(names) <= 20:
        for row, column in zip(*np.nonzero(counts), strict=True):
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if shares[row, column] > 0.5 else "black",
            )
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    figure.savefig(path, dpi=120)
