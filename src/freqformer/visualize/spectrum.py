"""Which frequencies a network's features hold, block after block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.images import Source
from ..errors import FreqFormerError
from ..tasks.pictures import add_legend, plain
from .features import Placed, Progress, batches, collect, placed_blocks
from .frequencies import radius

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {"stem": "*", "spectral": "o", "attention": "s", "convolution": "^", "other": "D"}
"""The marker of each kind of block in pictures."""
# An amplitude so much smaller than the largest is rounding.
_SMALLEST = 1e-7
_HIGH = 0.5


@dataclass(frozen=True)
class BlockSpectrum:
    """The spectrum of what one block gives."""

    name: str
    kind: str
    """One of ``features.KINDS``, or ``stem`` for what reaches the first block."""
    depth: float
    """Blocks before and with it over all: 0 of the stem, 1 of the last block."""
    grid: tuple[int, int]
    """(H, W) of the features of the first image."""
    frequency: np.ndarray
    """Shares of the grid's own Nyquist frequency from 0 to at most 1, (N,)."""
    relative: np.ndarray
    """Log10 of the amplitude at each over that at 0, (N,)."""

    @property
    def high(self) -> float | None:
        """The mean of ``relative`` above half the Nyquist frequency; None of grids without such frequencies."""
        above = self.relative[self.frequency > _HIGH]
        return float(above.mean()) if len(above) else None


def spectrum(
    models: nn.Module | Mapping[str, nn.Module], images: Source | Sequence[Source], *, progress: Progress = iter
) -> "Figure":
    """Draw the spectra of networks' features through depth, as Park and Kim do ("How Do Vision Transformers Work?",
    ICLR 2022).

    SpectFormer's claim (Patro et al., 2023) is that early spectral layers carry the high frequencies and later
    attention the low: then the curves fall with depth where attention begins.

    Args:
        models: a network or several by name: classifiers, adapted or not, detectors, segmenters.
        images: PIL images or paths; each model prepares them itself.
        progress: passes on a sequence and shows how far it is.

    Returns:
        A panel for each model, with a curve for each block (`measure_spectrum` defines it), and one of the high
        frequencies against depth.

    Raises:
        FreqFormerError: no image, one that cannot be read, or a network without blocks.
    """
    named = {"": models} if isinstance(models, nn.Module) else models
    return draw_spectrum({name: measure_spectrum(model, images, progress=progress) for name, model in named.items()})


@torch.no_grad()
def measure_spectrum(
    model: nn.Module, images: Source | Sequence[Source], *, progress: Progress = iter
) -> list[BlockSpectrum]:
    """The relative log amplitude of a network's features, of what reaches its first block and after each block.

    Of each channel's grid of features the amplitude of the 2-D Fourier transform is taken, and its log10, averaged
    over the channels and the images, and over the frequencies of a ring: ring k of a grid of n tokens along its
    shorter side has the frequencies nearest to 2 k / n of the Nyquist frequency, up to 1; the spectrum's corners
    beyond are left out. The value of ring 0, which is the grid's mean alone, is subtracted, so that every curve starts
    at 0. Frequencies are relative to the Nyquist frequency of the block's own grid, which in a pyramid is coarser from
    stage to stage. Grids of a single token have no frequencies, and their blocks are left out.

    Args:
        model: see `spectrum`.
        images: see `spectrum`.
        progress: see `spectrum`.

    Raises:
        FreqFormerError: see `spectrum`.
    """
    blocks = placed_blocks(model)
    found: list[list[tuple[np.ndarray, np.ndarray, int]]] = [[] for _ in range(len(blocks) + 1)]
    grids: list[tuple[int, int]] = []
    for pixels in batches(model, images, progress):
        seen = collect(model, pixels)
        assert seen.stem is not None
        features = [seen.stem, *seen.grids]
        grids = grids or [(grid.shape[1], grid.shape[2]) for grid in features]
        for curves, grid in zip(found, features, strict=True):
            curves.append((*ring_amplitudes(grid), len(grid)))
    first = Placed("stem", blocks[0].module, blocks[0].stage, "stem")
    spectra = []
    for number, (block, curves, size) in enumerate(zip([first, *blocks], found, grids, strict=True)):
        # Images of other sizes have other frequencies: their curves are read where the coarsest has its own.
        frequency = min((curve[0] for curve in curves), key=len)
        if len(frequency) < 2:
            continue
        values = [np.interp(frequency, own, relative) for own, relative, _ in curves]
        mean = np.average(values, axis=0, weights=[count for *_, count in curves])
        spectra.append(BlockSpectrum(block.name, block.kind, number / len(blocks), size, frequency, mean))
    if not spectra:
        raise FreqFormerError("every grid of this network on these images is a single token: give larger images")
    return spectra


def ring_amplitudes(grid: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The log amplitude of features against frequency, over that of their mean.

    Args:
        grid: features (B, H, W, C).

    Returns:
        Shares of the Nyquist frequency (N,), and log10 of the amplitude there over that at 0 (N,); see
        `measure_spectrum`.
    """
    height, width = grid.shape[1:3]
    amplitude = torch.fft.rfft2(grid.double().cpu(), dim=(1, 2)).abs()
    floor = max(float(amplitude.max()) * _SMALLEST, torch.finfo(torch.float64).tiny)
    logs = amplitude.clamp(min=floor).log10().mean(dim=(0, 3))
    # Columns inside the half-spectrum stand for two of the whole.
    weight = torch.full((height, width // 2 + 1), 2.0, dtype=torch.float64)
    weight[:, 0] = 1
    if width % 2 == 0:
        weight[:, -1] = 1
    side = min(height, width)
    ring = (radius(height, width) * side / 2).round().long()
    ring[0, 0] = 0
    rings = side // 2 + 1
    values = []
    for number in range(rings):
        inside = ring == number
        if number == 0:
            # Along a longer side there are frequencies below half a ring, which are not the mean.
            inside = torch.zeros_like(inside)
            inside[0, 0] = True
        values.append(float((logs * weight)[inside].sum() / weight[inside].sum()))
    return np.arange(rings) * 2 / side, np.array(values) - values[0]


def draw_spectrum(measured: Mapping[str, Sequence[BlockSpectrum]]) -> "Figure":
    """Draw what `measure_spectrum` found, by the models' names; see `spectrum`."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    count = len(measured)
    figure = Figure(figsize=(3.9 * (count + 1) + 0.6, 3.9), layout="constrained")
    panels = figure.subplots(1, count + 1, squeeze=False)[0]
    colours = colormaps["viridis_r"]
    for axes in panels[1:count]:
        axes.sharey(panels[0])
    for axes, (name, spectra) in zip(panels, measured.items(), strict=False):
        for one in spectra:
            colour = "black" if one.kind == "stem" else colours(one.depth)
            style: dict[str, Any] = {"linestyle": ":"} if one.kind == "stem" else {}
            axes.plot(one.frequency, one.relative, color=colour, marker=MARKERS[one.kind], markersize=3.5, **style)
        axes.set_title(plain(name) or "features after each block", fontsize=10)
        axes.set_xlabel("frequency (share of the grid's Nyquist)")
        axes.set_xlim(0, 1.02)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("log10 amplitude, relative to the mean's")
    figure.colorbar(
        ScalarMappable(Normalize(0, 1), colours),
        ax=list(panels[:count]),
        label="depth (blocks passed over all)",
        pad=0.01,
    )
    _draw_depths(panels[-1], measured)
    return figure


def _draw_depths(axes: "Axes", measured: Mapping[str, Sequence[BlockSpectrum]]) -> None:
    """The high frequencies of each block, a line for each model and a marker for each kind."""
    from matplotlib.lines import Line2D

    kinds: dict[str, None] = {}
    for number, spectra in enumerate(measured.values()):
        points = [(one, one.high) for one in spectra if one.high is not None]
        # Grids of other sizes have other Nyquist frequencies: no line joins them.
        for _, alike in groupby(points, key=lambda point: point[0].grid):
            line = [(one.depth, high) for one, high in alike]
            axes.plot(*zip(*line, strict=True), color=f"C{number}", linewidth=1.2)
        for one, high in points:
            kinds[one.kind] = None
            axes.plot(one.depth, high, MARKERS[one.kind], color=f"C{number}", markersize=6)
    handles = [Line2D([], [], color="0.3", linestyle="", marker=MARKERS[kind], label=kind) for kind in kinds]
    if len(measured) > 1:
        handles += [Line2D([], [], color=f"C{number}", label=plain(name)) for number, name in enumerate(measured)]
    add_legend(axes, handles, 8)
    axes.set_title("high frequencies through depth", fontsize=10)
    axes.set_xlabel("depth (blocks passed over all)")
    axes.set_ylabel("mean above half the Nyquist")
    axes.grid(alpha=0.3)
