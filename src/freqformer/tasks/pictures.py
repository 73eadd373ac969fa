"""What tasks draw of their results, as PNG files."""

import io
import warnings
from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from ..checkpoints import write_whole
from ..data import printable

# Of an image in a row of eight, in pixels.
_SIDE = 168
_COLUMNS = 8
_LINE = 19
_GREEN, _RED = (25, 110, 40), (185, 20, 30)


def draw_confusion(counts: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix as shares of the true class.

    Args:
        counts: images (true class, predicted class).
        names: the classes' names, in order.
        path: the PNG to write.
    """
    names = [plain(name) for name in names]
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
    save_figure(figure, path)


def draw_predictions(
    images: Sequence[Image.Image],
    predicted: Sequence[str],
    probabilities: Sequence[float],
    truth: Sequence[str],
    path: Path,
) -> None:
    """Draw images in rows of eight, each titled by its predicted class, green where it is right.

    Args:
        images: at least one.
        predicted: the predicted classes' names.
        probabilities: theirs.
        truth: the true classes' names.
        path: the PNG to write.
    """
    text, gap = font(15), 6
    width, height = _SIDE + gap, _SIDE + gap + 2 * _LINE
    sheet = Image.new("RGB", (min(_COLUMNS, len(images)) * width, ceil(len(images) / _COLUMNS) * height), "white")
    draw = ImageDraw.Draw(sheet)
    rows = zip(images, predicted, probabilities, truth, strict=True)
    for number, (image, name, probability, label) in enumerate(rows):
        left, top = number % _COLUMNS * width + gap // 2, number // _COLUMNS * height
        lines = [f" ({probability:.0%})", "" if name == label else f"is {printable(label)}"]
        lines[0] = _cut(printable(name), text, _SIDE - text.getlength(lines[0])) + lines[0]
        for line, words in enumerate(lines):
            shown = _cut(words, text, _SIDE)
            draw.text((left, top + _LINE * line), shown, fill=_GREEN if name == label else _RED, font=text)
        # Small images keep their pixels' edges.
        small = max(image.size) < _SIDE / 2
        scale = _SIDE / max(image.size)
        size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
        tile = image.convert("RGB").resize(size, Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC)
        sheet.paste(tile, (left + (_SIDE - size[0]) // 2, top + 2 * _LINE + (_SIDE - size[1]) // 2))
    write_whole(path, lambda aside: sheet.save(aside, format="png"))


def plain(text: str) -> str:
    """Text as matplotlib is to draw it: a name may hold what is no letter, and dollars would be mathematics."""
    return printable(text).replace("$", r"\$")


def add_legend(axes: Axes, handles: Sequence[Artist], size: float) -> None:
    """A legend of all handles by their labels: of names that begin with an underscore, matplotlib 3.9 shows none."""
    legend = axes.legend(handles, ["-"] * len(handles), fontsize=size)
    for text, handle in zip(legend.get_texts(), handles, strict=True):
        text.set_text(str(handle.get_label()))


def png_of(figure: Figure, dpi: int = 120) -> bytes:
    """A figure as a PNG file's bytes."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # A name may hold what the font has not: a box stands for it.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, dpi=dpi, format="png")
    return file.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, whole or not at all."""
    png = png_of(figure)
    write_whole(path, lambda aside: aside.write_bytes(png))


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font, which has more alphabets than Pillow's."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def _cut(text: str, text_font: ImageFont.FreeTypeFont, width: float) -> str:
    """As much of a text as there is room for."""
    # Names may be very long; measuring all of one would take long too.
    text = text[:200]
    if text_font.getlength(text) <= width:
        return text
    while text and text_font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
