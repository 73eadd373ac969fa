"""How much of an image each stage of a network sees: its effective receptive field."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..data.images import Source
from .features import Placed, Progress, batches, collect, is_dense, placed_blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = (0.5, 0.95)
"""The shares of the gradient that squares are drawn around."""
_NOISE_IMAGES = 16
_SHOWN_BLOCKS = 4
# The colour scale goes down to this share of the largest value.
_FAINTEST = 1e-4


@dataclass(frozen=True)
class Field:
    """The effective receptive field of one place."""

    name: str
    """The block's."""
    stage: int
    kind: str
    grid: tuple[int, int]
    centre: tuple[float, float]
    """The place in the image, in pixels from the top and from the left."""
    map: np.ndarray
    """The gradient's amplitude at each pixel of the image (H, W); its sum is 1, or 0 where nothing reaches."""
    sides: dict[float, float]
    """For each of ``SHARES`` the side of the smallest square around the place that holds so much of it, as a share of
    the image's side; of an image that is no square, a rectangle of its shape."""


def response(
    model: nn.Module, images: Source | Sequence[Source] | None = None, *, seed: int = 0, progress: Progress = iter
) -> "Figure":
    """Draw the effective receptive field of each stage of a network (Luo et al., "Understanding the Effective
    Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016).

    Args:
        model: a classifier, adapted or not, a detector or a segmenter.
        images: PIL images or paths; by default images of normal noise.
        seed: of the noise and of the signs.
        progress: passes on a sequence and shows how far it is.

    Returns:
        A panel for the last block of each stage, or for four blocks of a network with one; `measure_response` defines
        what it shows.

    Raises:
        FreqFormerError: no image, one that cannot be read, or a network without blocks.
    """
    return draw_response(measure_response(model, images, seed=seed, progress=progress))


def measure_response(
    model: nn.Module, images: Source | Sequence[Source] | None = None, *, seed: int = 0, progress: Progress = iter
) -> list[Field]:
    """The amplitude of the gradient of one place's features with respect to the image.

    The place is the token at (H' // 2, W' // 2) of the grid that a block gives. Its channels are added with signs drawn
    at random for each batch, so that none cancel out in the mean, and the gradient's absolute value is added over the
    image's colours and averaged over the images.

    Args:
        model: see `response`.
        images: see `response`; those of another size than the first are resized on the map.
        seed: see `response`.
        progress: see `response`.

    Raises:
        FreqFormerError: see `response`.
    """
    blocks = placed_blocks(model)
    chosen = _chosen(blocks)
    random = torch.Generator().manual_seed(seed)
    total: list[Tensor] = []
    grids: list[tuple[int, int]] = []
    inputs = _noise(model, random, progress) if images is None else batches(model, images, progress)
    for pixels in inputs:
        maps, sizes = _gradients(model, pixels, chosen, random)
        grids = grids or sizes
        if total:
            size = total[0].shape
            maps = [one if one.shape == size else _resized(one, (size[0], size[1])) for one in maps]
            total = [before + one for before, one in zip(total, maps, strict=True)]
        else:
            total = maps
    fields = []
    for place, grid, one in zip(chosen, grids, total, strict=True):
        height, width = one.shape
        centre = (grid[0] // 2 + 0.5) / grid[0] * height, (grid[1] // 2 + 0.5) / grid[1] * width
        amount = one.numpy() / max(float(one.sum()), torch.finfo(torch.float64).tiny)
        sides = {share: _side(amount, centre, share) for share in SHARES}
        block = blocks[place]
        fields.append(Field(block.name, block.stage, block.kind, grid, centre, amount, sides))
    return fields


def draw_response(fields: Sequence[Field]) -> "Figure":
    """Draw what `measure_response` found; see `response`."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(3.1 * len(fields) + 0.8, 3.7), layout="constrained")
    panels = figure.subplots(1, len(fields), squeeze=False)[0]
    stages = len({field.stage for field in fields})
    shown = None
    for axes, field in zip(panels, fields, strict=True):
        height, width = field.map.shape
        largest = field.map.max() or 1.0
        scale = LogNorm(_FAINTEST, 1, clip=True)
        shown = axes.imshow(
            field.map / largest, norm=scale, cmap="magma", extent=(0, width, height, 0), interpolation="nearest"
        )
        axes.plot(field.centre[1], field.centre[0], "+", color="deepskyblue", markersize=9)
        for share, style in zip(SHARES, (":", "-"), strict=True):
            sides = field.sides[share] * height, field.sides[share] * width
            corner = field.centre[1] - sides[1] / 2, field.centre[0] - sides[0] / 2
            axes.add_patch(
                Rectangle(
                    corner, sides[1], sides[0], fill=False, edgecolor="deepskyblue", linestyle=style, linewidth=1.2
                )
            )
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.set_xticks([])
        axes.set_yticks([])
        title = f"stage {field.stage + 1}" if stages > 1 else f"block {field.name.rpartition('.')[2]}"
        axes.set_title(f"{title} ({field.kind}, {field.grid[0]}x{field.grid[1]})", fontsize=10)
        axes.set_xlabel("\n".join(f"{share:.0%} within {field.sides[share]:.0%} of the side" for share in SHARES))
    if shown is not None:
        figure.colorbar(shown, ax=list(panels), label="gradient, share of the largest", shrink=0.8)
    return figure


def _chosen(blocks: Sequence[Placed]) -> list[int]:
    """The last block of each stage, or some of the only stage, evenly."""
    last = {block.stage: number for number, block in enumerate(blocks)}
    if len(last) > 1:
        return list(last.values())
    count = min(_SHOWN_BLOCKS, len(blocks))
    return sorted({round(float(place)) for place in np.linspace(0, len(blocks) - 1, count)})


def _noise(model: nn.Module, random: torch.Generator, progress: Progress) -> list[Tensor]:
    """Noise as a model takes it: of mean 0 and deviation 1 for a classifier, grey with noise for the others."""
    if is_dense(model):
        # A detector would enlarge smaller ones.
        shorter = int((getattr(model, "arguments", {}).get("size") or [256])[0])
        several = [0.5 + 0.2 * torch.randn(1, 3, shorter, shorter, generator=random) for _ in range(2)]
    else:
        size = tuple(getattr(model, "pretrained_cfg", {})["input_size"])
        several = [torch.randn(1, *size, generator=random) for _ in range(_NOISE_IMAGES)]
    return progress(several)  # type: ignore[return-value]


def _gradients(
    model: nn.Module, pixels: Tensor, chosen: Sequence[int], random: torch.Generator
) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """For each chosen block the gradient's amplitude, added over the batch, (H, W), and the block's grid."""
    # A batch may come from inference mode, whose tensors take no gradient.
    with torch.inference_mode(False), torch.enable_grad():
        pixels = pixels.clone().requires_grad_()
        grids = collect(model, pixels).grids
        most = max(grid.shape[-1] for grid in grids)
        signs = 2 * torch.randint(0, 2, (most,), generator=random) - 1
        maps, sizes = [], []
        for number, place in enumerate(chosen):
            grid = grids[place]
            at = grid[:, grid.shape[1] // 2, grid.shape[2] // 2]
            (gradient,) = torch.autograd.grad(
                (at * signs[: grid.shape[-1]].to(at)).sum(),
                pixels,
                retain_graph=number < len(chosen) - 1,
                allow_unused=True,
            )
            gradient = torch.zeros_like(pixels) if gradient is None else gradient
            maps.append(gradient.detach().abs().sum(dim=(0, 1)).double().cpu())
            sizes.append((grid.shape[1], grid.shape[2]))
    return maps, sizes


def _resized(one: Tensor, size: tuple[int, int]) -> Tensor:
    return nn.functional.interpolate(one[None, None], size, mode="area")[0, 0]


def _side(amount: np.ndarray, centre: tuple[float, float], share: float) -> float:
    """The side of the smallest square around a place that holds a share, as a share of the image's; at most 1."""
    height, width = amount.shape
    if not amount.any():
        return 0.0
    rows = np.abs(np.arange(height) + 0.5 - centre[0]) / height + 0.5 / height
    columns = np.abs(np.arange(width) + 0.5 - centre[1]) / width + 0.5 / width
    # The side that a square needs to hold each pixel whole.
    needed = 2 * np.maximum(rows[:, None], columns[None, :]).ravel()
    order = np.argsort(needed, kind="stable")
    held = np.cumsum(amount.ravel()[order])
    place = min(int(np.searchsorted(held, share * held[-1] - 1e-12)), len(order) - 1)
    return float(min(1.0, needed[order[place]]))
