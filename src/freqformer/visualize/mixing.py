"""The mixtures of filters that images choose in a model with dynamic filters."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..data import printable
from ..data.images import Source
from ..errors import FreqFormerError
from ..layers import DynamicFilter
from ..tasks.pictures import plain
from .features import Progress, prepare, run
from .learned import LearnedFilter, learned_filters
from .tiles import Band, draw_bands

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Sources = Source | Sequence[Source]

MOST_IMAGES = 32
"""Images that are looked at, at most: columns of a picture of shares."""
_NAMED = 6
"""Images whose names stand on the sheet."""
_IMAGES, _CHANNELS = 4, 2
"""Images, and channels of each, whose mixed filters are drawn."""


def mixtures(model: nn.Module, images: Sources, *, progress: Progress = iter) -> "Figure":
    """The filter banks of a model with dynamic filters, and what images make of them (Tatsunami and Taki 2024).

    A band for each layer: its bank, then for the first four images the mixed filters of the two channels whose
    mixtures are furthest from even, and beside it each filter's share, the mean over channels, image by image.

    Args:
        model: a network with dynamic filters.
        images: one image or several, paths or PIL images, of which the first 32 are taken; the model's own
            preprocessing is done here.
        progress: passes on images.

    Returns:
        The figure.

    Raises:
        FreqFormerError: no dynamic filter, or an image that cannot be read.
    """
    several = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
    if not several:
        raise FreqFormerError("there are no images to choose mixtures: name at least one")
    taken = several[:MOST_IMAGES]
    shares = routing_shares(model, taken, progress=progress)
    if not shares:
        raise FreqFormerError("the model has no dynamic filters, so images choose nothing: leave them out")
    learned = learned_filters(model)
    bands = [_mixed(learned[name], number, shares[name]) for number, name in enumerate(learned) if name in shares]
    count = len(taken)
    which = "one image chooses" if count == 1 else f"{count} images choose"
    if len(several) > count:
        which = f"the first {count} of {len(several)} images choose"
    title = f"What {which} of the banks of {len(bands)} dynamic filters"
    names = [f"image {i}" if isinstance(image, Image.Image) else Path(image).name for i, image in enumerate(taken)]
    named = [f"{i} {plain(printable(name)[:28])}" for i, name in enumerate(names[:_NAMED])]
    more = "" if count <= _NAMED else f", and {count - _NAMED} more"
    return draw_bands(bands, title, f"Images: {', '.join(named)}{more}.")


@torch.inference_mode()
def routing_shares(model: nn.Module, images: Sequence[Source], *, progress: Progress = iter) -> dict[str, Tensor]:
    """The shares that each dynamic filter gives the filters of its bank.

    Args:
        model: any network.
        images: paths or PIL images.
        progress: passes on images.

    Returns:
        From a layer's module name to (images, K, C); empty for a model without dynamic filters.
    """
    dynamic = {name: module for name, module in model.named_modules() if isinstance(module, DynamicFilter)}
    if not dynamic:
        return {}
    chosen: dict[str, list[Tensor]] = {name: [] for name in dynamic}

    def keep(name: str, layer: DynamicFilter, _: nn.Module, __: Any, scores: Tensor) -> None:
        chosen[name].append(layer.shares(scores).float().cpu())

    was_training = model.training
    model.eval()
    try:
        with ExitStack() as hooks:
            for name, module in dynamic.items():
                handle = module.routing.register_forward_hook(partial(keep, name, module))
                hooks.callback(handle.remove)
            for image in progress(images):
                run(model, prepare(model, image)[None])
    finally:
        model.train(was_training)
    return {name: torch.cat(shares) for name, shares in chosen.items()}


def _mixed(bank: LearnedFilter, number: int, shares: Tensor) -> Band:
    """A bank, mixtures of it, and the shares (images, K, C) as a band."""
    filters = shares.shape[1]
    uneven = (shares - 1 / filters).square().sum(dim=(0, 1))
    channels = uneven.argsort(descending=True, stable=True)[:_CHANNELS].sort().values
    some = shares[:_IMAGES, :, channels].transpose(1, 2).flatten(0, 1).T
    labels = [f"filter {k}" if k == 0 else str(k) for k in range(filters)]
    labels += [f"im. {i} ch. {c}" for i in range(min(len(shares), _IMAGES)) for c in channels.tolist()]
    return Band(
        f"{number}  {bank.name}",
        f"bank of {filters}, and mixtures of channels {' and '.join(map(str, channels.tolist()))} of {shares.shape[2]}"
        f"  ·  {bank.grid[0]}×{bank.grid[1]} tokens",
        torch.cat([bank.spectrum, bank.spectrum @ some.to(bank.spectrum.dtype)], dim=2),
        torch.cat([bank.impulse, bank.impulse @ some], dim=2),
        labels,
        shares.mean(dim=2).T.numpy(),
    )
