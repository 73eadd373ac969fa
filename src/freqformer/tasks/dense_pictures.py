"""Pictures of what networks find in images: boxes, masks, pages of examples, scores of classes."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from ..data import printable
from .pictures import font, plain, save_figure

Colour = tuple[int, int, int]
_Rectangle = tuple[float, float, float, float]

# Names of more boxes than this would cover the image.
_CROWD = 30
# Small images are enlarged towards this many pixels on their longer side, by a whole factor of at most 4.
_READABLE = 800
_LEGEND = 24


def class_colours(names: Sequence[str]) -> dict[str, Colour]:
    """Give each class a colour: up to ten the usual ones of plots, else hues as far apart as they go.

    Args:
        names: the classes' names.

    Returns:
        Red, green, blue in 0..255 by name.
    """
    if len(names) <= 10:
        shares = [matplotlib.colormaps["tab10"](number)[:3] for number in range(len(names))]
    else:
        # The golden ratio's steps never come near an earlier hue; every second class is darker.
        hues = [(number * 0.618034) % 1 for number in range(len(names))]
        values = [1.0 if number % 2 == 0 else 0.7 for number in range(len(names))]
        shares = [
            tuple(matplotlib.colors.hsv_to_rgb((hue, 0.85, value))) for hue, value in zip(hues, values, strict=True)
        ]
    return {
        name: (round(255 * red), round(255 * green), round(255 * blue))
        for name, (red, green, blue) in zip(names, shares, strict=True)
    }


def draw_instances(
    image: Image.Image,
    boxes: Tensor,
    labels: Sequence[str],
    scores: Tensor | None = None,
    masks: Tensor | None = None,
    *,
    colours: Mapping[str, Colour],
) -> Image.Image:
    """Draw boxes, masks, names and scores over an image; a small image is enlarged, so that names can be read.

    In a crowd lines are thin; no names are drawn of a class with more than 30 boxes, nor over an earlier name.

    Args:
        image: an RGB image.
        boxes: (N, 4) as x1, y1, x2, y2 in pixels of the image.
        labels: the name of each box's class.
        scores: (N,), drawn behind the names.
        masks: bool (N, H, W) or shares (N, 1, H, W) of which more than 0.5 is inside.
        colours: as ``class_colours`` gives them.

    Returns:
        A new image, ``1..4`` times as large.
    """
    factor = min(4, max(1, round(_READABLE / max(image.size))))
    picture = image.convert("RGB").resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC)
    side = max(picture.size)
    line = max(2, round(side / 400)) if len(labels) <= _CROWD else max(1, round(side / 800))
    if masks is not None and len(masks):
        _draw_masks(picture, masks, [colours[name] for name in labels], line)
    draw = ImageDraw.Draw(picture)
    text_font = font(max(11, side // 55))
    corners = [[factor * edge for edge in box] for box in boxes.tolist()]
    for box, name in zip(reversed(corners), reversed(labels), strict=True):
        draw.rectangle(_ordered(box), outline=colours[name], width=line)
    counts = Counter(labels)
    taken: list[_Rectangle] = []
    for number, (box, name) in enumerate(zip(corners, labels, strict=True)):
        text = printable(name) + ("" if scores is None else f" {scores[number]:.2f}")
        place = _place(text_font.getbbox(text), box, picture.size)
        # The best detections come first: theirs are the names that are drawn.
        if counts[name] <= _CROWD and not any(_overlap(place, other) for other in taken):
            taken.append(place)
            _write(draw, text, place, colours[name], text_font)
    return picture


def page(
    rows: Sequence[Sequence[Image.Image]],
    titles: Sequence[str],
    path: Path,
    *,
    legend: Mapping[str, Colour] | None = None,
) -> None:
    """Write a page of examples: a row per image, such as ground truth beside prediction.

    Args:
        rows: at least one; pictures of any sizes, as many in each row as there are titles.
        titles: one per column.
        path: the PNG to write.
        legend: the names and colours in these pictures, explained below them; of many the first 24.
    """
    # A column is 6 inches wide and a row as high as its highest picture at that width, or 9.
    heights = [min(9.0, max(6 * picture.height / picture.width for picture in row)) for row in rows]
    shown = dict(list((legend or {}).items())[:_LEGEND])
    size = (6 * len(titles) + 0.1, sum(heights) + 0.4 + 0.3 * math.ceil(len(shown) / 6))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(titles), squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(plain(title))
    for places, row in zip(grid, rows, strict=True):
        for axes, picture in zip(places, row, strict=True):
            shrunk = picture.copy()
            shrunk.thumbnail((1200, 1200))  # matplotlib would take a gigabyte for a large one
            axes.imshow(np.asarray(shrunk))
            axes.set_axis_off()
    if shown:
        patches = [Patch(color=f"#{bytes(colour).hex()}", label=plain(name)) for name, colour in shown.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(6, len(shown)), frameon=False)
    save_figure(figure, path)


def draw_per_class(rows: Sequence[Mapping], path: Path, score: str = "AP") -> None:
    """Draw a score of each class as horizontal bars, the best on top and classes without a score below.

    Args:
        rows: a ``name``, the score in 0..1 or nan, and perhaps ``instances`` for each class.
        path: the PNG to write.
        score: which entry of the rows to draw.
    """
    ranked = sorted(reversed(rows), key=lambda row: (not math.isnan(row[score]), row[score]))
    names = [plain(row["name"]) + (f" ({row['instances']})" if "instances" in row else "") for row in ranked]
    values = [row[score] for row in ranked]
    # Beyond 300 classes bars get thinner: a PNG has its limits.
    figure = Figure(figsize=(8, 1 + min(60, 0.2 * max(len(rows), 3))), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(rows)), np.nan_to_num(values), height=0.8, color="tab:blue")
    axes.bar_label(bars, ["–" if math.isnan(value) else f"{value:.3f}" for value in values], padding=2, fontsize=8)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_ylim(-0.6, max(len(rows), 1) - 0.4)
    axes.set_xlim(0, 1.08)
    axes.set_xlabel(plain(score) + (" (in brackets: objects)" if any("instances" in row for row in rows) else ""))
    save_figure(figure, path)


def _draw_masks(picture: Image.Image, masks: Tensor, colours: Sequence[Colour], line: int) -> None:
    # The best detections come first, and lie on top.
    for mask, colour in zip(reversed(masks), reversed(colours), strict=True):
        inside = (mask > 0.5).reshape(mask.shape[-2:]).cpu()
        if not inside.any():
            continue
        factor = picture.width // inside.shape[1]
        rows, columns = (_extent(inside.any(dim=dim)) for dim in (1, 0))
        inside = inside[rows, columns].repeat_interleave(factor, 0).repeat_interleave(factor, 1)
        corner = (factor * columns.start, factor * rows.start)
        # The rim is what a square of the line's width reaches from outside.
        outside = functional.pad((~inside).float(), [line] * 4, value=1)[None]
        for window in ((2 * line + 1, 1), (1, 2 * line + 1)):
            outside = functional.max_pool2d(outside, window, stride=1)
        for part, opacity in ((inside, 0.4), (inside & (outside[0] > 0), 1.0)):
            picture.paste(colour, corner, Image.fromarray((255 * opacity * part).byte().numpy()))


def _extent(line: Tensor) -> slice:
    hits = line.nonzero()
    return slice(int(hits[0]), int(hits[-1]) + 1)


def _ordered(box: Sequence[float]) -> list[float]:
    # PIL refuses a box whose far corner is before its near one.
    return [box[0], box[1], max(box[0], box[2]), max(box[1], box[3])]


def _place(text: _Rectangle, box: Sequence[float], size: tuple[int, int]) -> _Rectangle:
    """Where a text goes: above its box, or within it at the image's upper edge."""
    width, height = text[2] - text[0] + 4, text[3] - text[1] + 4
    x = max(0, min(box[0], size[0] - width))
    y = max(0, box[1] - height if box[1] >= height else box[1])
    return x, y, x + width, y + height


def _overlap(one: _Rectangle, other: _Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _write(
    draw: ImageDraw.ImageDraw, text: str, place: _Rectangle, colour: Colour, text_font: ImageFont.FreeTypeFont
) -> None:
    left, top, _, _ = text_font.getbbox(text)
    draw.rectangle(place, fill=colour)
    bright = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 140
    draw.text((place[0] + 2 - left, place[1] + 2 - top), text, fill="black" if bright else "white", font=text_font)
