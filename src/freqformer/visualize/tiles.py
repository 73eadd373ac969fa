"""Filters drawn side by side: bands of log-magnitude, phase and impulse response, a tile a filter.

A row of tiles is one image, and its colour bar another of the same axes: a sheet of a whole model is a few dozen axes
and is drawn in a second.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from torch import Tensor

NO_PHASE = -4.0
"""What stands in a picture of phases where there is no magnitude."""

# In inches.
_WIDTH, _LEFT, _BAR, _TITLE, _BETWEEN, _TOP = 13.7, 1.05, 0.62, 0.46, 0.05, 0.75
# Magnitudes further below the largest are drawn as this.
_DECADES = 4.0
# Below this share of the largest magnitude, a number is what rounding leaves, and has no phase.
_NOTHING = 1e-6


_NOTES = (
    "Spectra: the mean (DC) in the middle, the Nyquist frequencies at the edges. Responses: no shift in the middle."
)


@dataclass(frozen=True, eq=False)
class Band:
    """Filters of one grid that are drawn with the same colours."""

    title: str
    about: str
    """What they are, beside the title."""
    spectrum: Tensor
    """Complex (H, W, n), the mean in the middle."""
    impulse: Tensor
    """Real (H, W, n), no shift in the middle."""
    labels: Sequence[str]
    """What stands above each."""
    shares: np.ndarray | None = None
    """Of a bank's filters (K, images), drawn beside them."""


def draw_bands(bands: Sequence[Band], title: str, note: str = "", *, tile: float = 0.72, columns: int = 16) -> Figure:
    """A sheet of bands.

    The image of each row of tiles is the first of its axes; the axes are labelled, in order, ``magnitude``, ``phase``
    and ``impulse`` for each band.

    Args:
        bands: what to draw, top to bottom.
        title: of the sheet; none for a figure that stands below a heading.
        note: what else to say below it.
        tile: width of a tile in inches.
        columns: tiles beside each other at most; others go below them.

    Returns:
        The figure.
    """
    layouts = [_Layout(band, tile, columns) for band in bands]
    wide = _LEFT + max(layout.width + _BAR + layout.beside for layout in layouts)
    across = max(1, min(len(bands), int(_WIDTH // wide)))
    lines = [layouts[i : i + across] for i in range(0, len(layouts), across)]
    width = max(across * wide + 0.1, 7.5)
    notes = wrap(f"{_NOTES} {note}", int(13.5 * width))
    below_title = 0.42 if title else 0.12
    head = _TOP - 0.42 + below_title + 0.14 * (len(notes) - 1)
    height = head + sum(max(layout.height for layout in line) for line in lines) + 0.1
    figure = Figure(figsize=(width, height))
    figure.text(0.15 / width, 1 - 0.12 / height, title, va="top", fontsize=12, weight="bold")
    figure.text(0.15 / width, 1 - below_title / height, "\n".join(notes), va="top", fontsize=8, color="0.35")
    top = height - head
    for line in lines:
        for place, layout in enumerate(line):
            layout.draw(figure, place * wide, top)
        top -= max(layout.height for layout in line)
    return figure


class _Layout:
    """Where the parts of a band go.

    Args:
        band: the band.
        tile: width of a tile in inches.
        columns: tiles beside each other at most.
    """

    def __init__(self, band: Band, tile: float, columns: int) -> None:
        self.band = band
        rows, across, count = band.spectrum.shape
        # A line is no picture: its filters lie below each other.
        self.is_line = rows == 1 and across > 8
        self.columns = 1 if self.is_line else min(columns, count)
        self.stacked = math.ceil(count / self.columns)
        # The gaps between tiles, in tokens.
        self.gaps = (
            (0, 0) if self.is_line else (math.ceil(0.16 * rows) if self.stacked > 1 else 0, math.ceil(across / 14))
        )
        self.shape = (
            self.stacked * rows + (self.stacked - 1) * self.gaps[0],
            self.columns * across + (self.columns - 1) * self.gaps[1],
        )
        self.token = (8 * tile if self.is_line else self.columns * tile) / self.shape[1]
        self.width = self.shape[1] * self.token
        self.row = 0.14 * count if self.is_line else min(self.shape[0] * self.token, 3 * self.stacked * tile)
        self.beside = 0.0 if band.shares is None else 0.35 + min(0.3 * band.shares.shape[1], 4.0) + _BAR
        # Kinds that have several rows of tiles are further apart than those rows.
        self.between = _BETWEEN if self.stacked == 1 or self.is_line else 0.3 * tile
        self.height = _TITLE + 3 * (self.row + self.between) + 0.18

    def draw(self, figure: Figure, left: float, top: float) -> None:
        """Draw the band with its upper left corner there, in inches from the figure's lower left one."""
        width, height = figure.get_size_inches()
        band = self.band
        figure.text((left + 0.15) / width, (top - 0.02) / height, band.title, va="top", fontsize=8.5, weight="bold")
        figure.text((left + 0.15) / width, (top - 0.17) / height, band.about, va="top", fontsize=7, color="0.35")
        spectrum, impulse = band.spectrum.numpy(), band.impulse.numpy().astype(np.float64)
        rows = (
            ("magnitude", "magnitude\n(log scale)", *_magnitude(np.abs(spectrum).astype(np.float64))),
            ("phase", "phase", *_phase(spectrum)),
            ("impulse", "impulse\nresponse", *_impulse(impulse)),
        )
        bottom = top - _TITLE
        for number, (label, words, values, colours, limits, ends) in enumerate(rows):
            bottom -= self.row
            inches = (left + _LEFT, bottom, self.width + _BAR, self.row)
            axes = figure.add_axes(_share(inches, width, height), label=label)
            axes.axis("off")
            self._tiles(axes, values, colours, limits)
            _bar(axes, self.token, self.shape, colours, limits, ends)
            axes.set_xlim(0, self.shape[1] * (1 + _BAR / self.width))
            axes.set_ylim(self.shape[0], 0)
            away = 0.48 if self.is_line else 0.08
            axes.text(-away / self.token, self.shape[0] / 2, words, ha="right", va="center", fontsize=7)
            if number == 0 or self.is_line:
                self._labels(axes)
            bottom -= self.between
        if band.shares is not None:
            side = left + _LEFT + self.width + _BAR + 0.35
            inches = (side, bottom + self.between, self.beside - 0.35, top - _TITLE - bottom - self.between)
            self._shares(figure.add_axes(_share(inches, width, height), label="shares"), band.shares, inches)

    def _tiles(self, axes: Axes, values: np.ndarray, colours: Colormap, limits: Normalize) -> None:
        rows, across, count = values.shape
        tiled = np.full(self.shape, np.nan)
        for place in range(count):
            y, x = self._corner(place, rows, across)
            tiled[y : y + rows, x : x + across] = values[..., place]
        extent = (0, self.shape[1], self.shape[0], 0)
        axes.imshow(
            np.ma.masked_invalid(tiled),
            cmap=colours,
            norm=limits,
            extent=extent,
            aspect="auto",
            interpolation="nearest",
        )

    def _labels(self, axes: Axes) -> None:
        rows, across, _ = self.band.spectrum.shape
        for place, label in enumerate(self.band.labels):
            y, x = self._corner(place, rows, across)
            if self.is_line:
                axes.text(-0.05 / self.token, y + 0.5, label, ha="right", va="center", fontsize=5.5, color="0.35")
            else:
                axes.text(x + across / 2, y - 0.02 / self.token, label, ha="center", fontsize=6, color="0.35")

    def _shares(self, axes: Axes, shares: np.ndarray, inches: Sequence[float]) -> None:
        filters, images = shares.shape
        cell = (inches[2] - _BAR) / images
        axes.axis("off")
        limits = Normalize(0, max(float(shares.max()), 1 / filters))
        axes.imshow(shares, cmap="Blues", norm=limits, extent=(0, images, filters, 0), aspect="auto")
        for k in range(filters):
            axes.text(-0.05 / cell, k + 0.5, f"filter {k}" if k == 0 else str(k), ha="right", va="center", fontsize=6)
        for image in range(images):
            label = f"image {image}" if image == 0 else str(image)
            if image % math.ceil(0.16 / cell) == 0:
                axes.text(image + 0.5, -0.02 * filters, label, ha="center", fontsize=6, color="0.35")
        if cell >= 0.25:
            for (k, image), share in np.ndenumerate(shares):
                colour = "white" if share > 0.6 * limits.vmax else "black"  # type: ignore[operator]
                axes.text(
                    image + 0.5,
                    k + 0.5,
                    f"{share:.2f}"[1:] if share < 0.995 else "1",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color=colour,
                )
        _bar(axes, cell, shares.shape, colormaps["Blues"], limits, (f"share\n{limits.vmax:.2f}", "0"))
        axes.set_xlim(0, inches[2] / cell)
        axes.set_ylim(filters, 0)

    def _corner(self, place: int, rows: int, across: int) -> tuple[int, int]:
        """The upper left corner of a tile in tokens."""
        y, x = divmod(place, self.columns)
        return y * (rows + self.gaps[0]), x * (across + self.gaps[1])


def _share(inches: Sequence[float], width: float, height: float) -> tuple[float, float, float, float]:
    """Left, bottom, width and height as shares of a figure."""
    return inches[0] / width, inches[1] / height, inches[2] / width, inches[3] / height


def _bar(
    axes: Axes, unit: float, shape: Sequence[int], colours: Colormap, limits: Normalize, ends: tuple[str, str]
) -> None:
    """A colour bar beside a picture of a shape (rows, columns); a column is so many inches wide."""
    left, wide = shape[1] + 0.08 / unit, 0.09 / unit
    ramp = np.linspace(limits.vmax or 0, limits.vmin or 0, 64)[:, None]
    axes.imshow(ramp, cmap=colours, norm=limits, extent=(left, left + wide, shape[0], 0), aspect="auto")
    for text, y, side in zip(ends, (0, shape[0]), ("top", "bottom"), strict=True):
        axes.text(left + 1.5 * wide, y, text, va=side, fontsize=6)


Drawn = tuple[np.ndarray, Colormap, Normalize, tuple[str, str]]


def _magnitude(magnitude: np.ndarray) -> Drawn:
    """Logarithms to base 10, down to four decades below the largest."""
    most = magnitude.max()
    if most == 0:
        return np.full_like(magnitude, -1), colormaps["viridis"], Normalize(-1, 0), ("1", "0")
    high = math.log10(most)
    # A few magnitudes that happen to be tiny must not take the colours from all others.
    low = max(high - _DECADES, math.log10(max(np.quantile(magnitude, 0.02), most * 10**-_DECADES)))
    low = min(low, high - 0.3)
    values = np.log10(np.maximum(magnitude, 10**low))
    return values, colormaps["viridis"], Normalize(low, high), (f"{most:.2g}", f"{10**low:.2g}")


def _phase(spectrum: np.ndarray) -> Drawn:
    magnitude = np.abs(spectrum)
    # Of single precision, pi itself would be beyond the end.
    phase = np.clip(np.angle(spectrum).astype(np.float64), -math.pi, math.pi)
    phase[magnitude <= _NOTHING * magnitude.max()] = NO_PHASE
    return phase, colormaps["twilight"].with_extremes(under="0.85"), Normalize(-math.pi, math.pi), ("π", "-π")


def _impulse(impulse: np.ndarray) -> Drawn:
    most = np.abs(impulse).max() or 1.0
    return impulse, colormaps["RdBu_r"], Normalize(-most, most), (f"{most:.2g}", f"-{most:.2g}")
