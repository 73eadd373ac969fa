"""The sheet of a model's learned filters."""

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import FreqFormerError
from .learned import KINDS, LearnedFilter, learned_filters
from .tiles import Band, draw_bands

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LAYERS = 40
"""Layers on one sheet, unless more are chosen."""
ORDERS = {"energy": "the strongest first", "index": "the first", "random": "drawn at random"}

Layers = Sequence[int | str] | int | str


def filters(
    model: nn.Module,
    *,
    layers: Layers | None = None,
    channels: int | Sequence[int] = 16,
    order: str = "energy",
    seed: int = 0,
) -> "Figure":
    """The learned filters of a model, as GFNet (Rao et al. 2021, figure 4) and SpectFormer (Patro et al. 2023) do it.

    A band for each spectral layer: log-magnitude and phase over the whole, shifted spectrum, and the impulse response.

    Args:
        model: anything with spectral layers.
        layers: those to draw, by number (0 is the first, -1 the last) or by the module's name; by default all, or of
            more than 40 that many, evenly spread.
        channels: how many of each layer at most, or which, by number.
        order: which of its channels, where they are not given by number: ``"energy"``, the
            strongest first; ``"index"``, the first; or ``"random"``.
        seed: of ``"random"``.

    Returns:
        The figure.

    Raises:
        FreqFormerError: no spectral layer, an unknown one, or a wrong setting.
    """
    learned = learned_filters(model)
    chosen = choose_layers(learned, layers)
    some = len(chosen) < len(learned)
    title = f"Learned filters of {len(chosen)}" + (f" of {len(learned)}" if some else "")
    title += " spectral layer" + ("s" if len(learned) > 1 else "")
    if layers is None and some:
        title += ", evenly spread; others by their numbers or names"
    numbers = {name: number for number, name in enumerate(learned)}
    bands = [filter_band(one, numbers[one.name], channels=channels, order=order, seed=seed) for one in chosen]
    return draw_bands(bands, title)


def choose_layers(learned: Mapping[str, LearnedFilter], layers: Layers | None = None) -> list[LearnedFilter]:
    """The layers that are named, in that order; see `filters`."""
    if not learned:
        raise FreqFormerError(
            "the model has no spectral layers with filters to draw (attention, convolution and AFNO have none)"
        )
    every = list(learned.values())
    if layers is None:
        if len(every) <= MOST_LAYERS:
            return every
        return [every[round(i * (len(every) - 1) / (MOST_LAYERS - 1))] for i in range(MOST_LAYERS)]
    several = [layers] if isinstance(layers, (int, str)) else layers
    return [every[_number(layer, list(learned))] for layer in several]


def filter_band(one: LearnedFilter, number: int, *, channels: int | Sequence[int], order: str, seed: int = 0) -> Band:
    """Some filters of a layer as a band; see `filters`."""
    places = choose_channels(one, channels, order, seed)
    some = len(places) < one.channels
    unit = "filter" if one.kind == "dynamic" else "channel"
    how = ORDERS[order] if isinstance(channels, int) else "chosen by number"
    which = f"{len(places)} of {one.channels} {unit}s, {how}" if some else f"{len(places)} {unit}s"
    about = f"{KINDS[one.kind]}  ·  {one.grid[0]}×{one.grid[1]} tokens  ·  {which}"
    if not one.energy.any():
        about += "  ·  all zero"
    labels = [f"{unit} {place}" if i == 0 else str(place) for i, place in enumerate(places.tolist())]
    return Band(f"{number}  {one.name}", about, one.spectrum[..., places], one.impulse[..., places], labels)


def choose_channels(one: LearnedFilter, channels: int | Sequence[int], order: str, seed: int = 0) -> Tensor:
    """Which of a layer's channels to draw, by number; see `filters`."""
    if order not in ORDERS:
        raise FreqFormerError(f"there is no order {order!r} of channels: choose one of {', '.join(ORDERS)}")
    if not isinstance(channels, int):
        wrong = [number for number in channels if not 0 <= number < one.channels]
        if wrong or not channels:
            raise FreqFormerError(
                f"{one.name} has the channels 0 to {one.channels - 1}, not {', '.join(map(str, wrong)) or 'none'}: "
                "choose others, or some layers alone"
            )
        return torch.tensor(list(channels))
    if channels < 1:
        raise FreqFormerError(f"the channels to draw must be at least 1, not {channels}")
    count = min(channels, one.channels)
    # A bank that is drawn whole stays in its own order, to which its mixtures refer.
    if order == "index" or (one.kind == "dynamic" and count == one.channels):
        return torch.arange(count)
    if order == "random":
        return torch.randperm(one.channels, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    return one.energy.argsort(descending=True, stable=True)[:count]


def _number(layer: int | str, names: Sequence[str]) -> int:
    """The place of a layer that is named by number or name."""
    if layer in names:
        return names.index(str(layer))
    try:
        number = int(layer)
    except ValueError:
        near = difflib.get_close_matches(str(layer), names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(names)}"
        raise FreqFormerError(f"there is no spectral layer {layer!r}: {hint}") from None
    if not -len(names) <= number < len(names):
        span = f"0 to {len(names) - 1}" if len(names) > 1 else "0"
        raise FreqFormerError(f"there is no spectral layer {number}: choose from {span}, {', '.join(names)}")
    return number % len(names)
