"""Pictures of predictions, as PNG files."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from .predict import Prediction


def draw_predictions(
    images: Sequence[Image.Image], predictions: Sequence[Prediction], truth: Sequence[str], path: Path
) -> None:
    """Draw images in rows of eight, each titled by its predicted class, green where it is right.

    Args:
        images: the images.
        predictions: one an image.
        truth: the true classes' names.
        path: the PNG to write.
    """
    rows = ceil(len(images) / 8)
    figure = Figure(figsize=(12, 1.8 * rows), layout="constrained")
    for axes in figure.subplots(rows, 8, squeeze=False).flat:
        axes.axis("off")
    for axes, image, prediction, label in zip(figure.axes, images, predictions, truth, strict=False):
        axes.imshow(image)
        right = prediction.labels[0] == label
        title = f"{prediction.labels[0]} ({prediction.probabilities[0]:.0%})"
        axes.set_title(
            title if right else f"{title}, is {label}", fontsize=9, color="tab:green" if right else "tab:red"
        )
    figure.savefig(path, dpi=110)
