"""The curves of a run, as a PNG file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def draw_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw what each epoch measured: losses in one panel, the other metrics in another, the learning rate.

    Args:
        history: a dict of numbers per epoch, with ``epoch`` counted from 1.
        path: the PNG to write.
    """
    epochs = [row["epoch"] for row in history]
    # An epoch that was not evaluated has no scores.
    names = list(dict.fromkeys(name for row in history for name in row if "/" in name))
    panels = [
        ("loss", [name for name in names if name.endswith("/loss")]),
        ("score", [name for name in names if not name.endswith("/loss")]),
        ("learning rate", ["lr"]),
    ]
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, 3), panels, strict=True):
        for name in lines:
            points = [(epoch, row[name]) for epoch, row in zip(epochs, history, strict=True) if name in row]
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(set(epochs)) == 1:
            # A lone point would be spread over hundredths of an epoch.
            axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend()
    figure.savefig(path, dpi=110)
