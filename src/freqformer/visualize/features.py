"""Images through a network, and what its blocks give: the tokens after each block, as grids."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision.transforms.v2 import functional as F

from ..adapters.backbone import Backbone, Grid, grid_of, in_evaluation, patch_embedding
from ..data import decode
from ..data.images import Source
from ..errors import FreqFormerError
from ..layers import AFNO, Attention, Block, DepthwiseConv, DynamicFilter, GlobalFilter, Stage
from ..tasks import model_transform

Progress = Callable[[Sequence[Any]], Iterable[Any]]
"""Passes on a sequence and shows how far it is."""
KINDS = ("spectral", "attention", "convolution", "other")
"""What a block mixes tokens by."""
_MIXERS: dict[str, tuple[type[nn.Module], ...]] = {
    "attention": (Attention,),
    "spectral": (GlobalFilter, DynamicFilter, AFNO),
    "convolution": (DepthwiseConv,),
}
# Images of one size that pass at once.
_BATCH = 16


@dataclass(frozen=True)
class Placed:
    """A block of a network and where it stands."""

    name: str
    module: nn.Module
    stage: int
    kind: str
    """One of ``KINDS``."""


@dataclass
class Seen:
    """What a batch of images left on its way."""

    pixels: Tensor
    """The images as the network took them, (B, 3, H, W)."""
    stem: Tensor | None = None
    """The grid that reaches the first block, (B, H', W', C)."""
    grids: list[Tensor] = field(default_factory=list)
    """The grid after each block, (B, H', W', C)."""


def placed_blocks(model: nn.Module) -> list[Placed]:
    """The blocks of a network in their order: of any model of this package, or of timm where they are one sequence.

    Args:
        model: a classifier, adapted or not, a detector or a segmenter.

    Raises:
        FreqFormerError: it has no such blocks.
    """
    stages = [module for module in model.modules() if isinstance(module, Stage)]
    stage_of = {block: number for number, stage in enumerate(stages) for block in stage.blocks}
    ours = [(name, module) for name, module in model.named_modules() if isinstance(module, Block)]
    if ours:
        return [Placed(name, block, stage_of.get(block, 0), _kind(block)) for name, block in ours]
    network = inner_network(model)
    backbone = _sequence(network)
    return [
        Placed(f"{backbone.path}.{number}", block, 0, "attention" if hasattr(block, "attn") else "other")
        for number, block in enumerate(backbone.blocks)
    ]


def inner_network(model: nn.Module) -> nn.Module:
    """The classifier, or within a detector or a segmenter the network that its features come from."""
    network = getattr(getattr(model, "backbone", None), "network", model)
    return getattr(network, "model", network)


def prepare(model: nn.Module, image: Source) -> Tensor:
    """An image as a model takes it.

    Args:
        model: a classifier, whose own preprocessing is applied, or a detector or segmenter, which do that themselves.
        image: a PIL image or the path of one.

    Returns:
        (3, H, W), normalised for a classifier, in 0..1 for the others.

    Raises:
        FreqFormerError: the image cannot be read, or the model does not say its preprocessing.
    """
    opened = image.convert("RGB") if isinstance(image, Image.Image) else decode(image, str(image))
    if is_dense(model):
        return F.to_dtype(F.pil_to_tensor(opened), torch.float32, scale=True)
    if not getattr(model, "pretrained_cfg", None):
        raise FreqFormerError("this model does not say how its images are prepared: it has no pretrained_cfg")
    return model_transform(model)(opened)  # type: ignore[arg-type]


def denormalised(pixels: Tensor, cfg: Mapping[str, Any]) -> Tensor:
    """Pixels (3, H, W) as a network takes them, in 0..1 again, by the ``mean`` and ``std`` of its description."""
    mean, std = (torch.tensor(cfg[key], dtype=torch.float32)[:, None, None] for key in ("mean", "std"))
    return pixels.float().cpu() * std + mean


def is_dense(model: nn.Module) -> bool:
    """Whether a model is a detector or a segmenter, which prepare images themselves."""
    return isinstance(getattr(getattr(model, "backbone", None), "network", None), nn.Module)


def batches(model: nn.Module, images: Source | Sequence[Source], progress: Progress = iter) -> Iterator[Tensor]:
    """Images as a model takes them, (B, 3, H, W): several at once of a classifier, one at a time of the others.

    Raises:
        FreqFormerError: there is no image, or one that cannot be read.
    """
    several = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
    if not several:
        raise FreqFormerError("there is no image to look at: name at least one")
    step = 1 if is_dense(model) else _BATCH
    for first in progress(range(0, len(several), step)):
        yield torch.stack([prepare(model, image) for image in several[first : first + step]])


def run(model: nn.Module, pixels: Tensor) -> Any:
    """A model on a batch that `prepare` made, in the precision of its weights; detectors take lists.

    Raises:
        FreqFormerError: the network takes images of another size or of other channels.
    """
    weights = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), pixels)
    pixels = pixels.to(weights.device, weights.dtype)
    try:
        return model(list(pixels)) if getattr(model, "kind", None) and is_dense(model) else model(pixels)
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError) as error:
        size, (reason, *_) = "x".join(map(str, pixels.shape[1:])), str(error).splitlines() or ["no message"]
        raise FreqFormerError(
            f"the network does not take images of {size}, which its preprocessing makes ({reason}): "
            "pretrained_cfg['input_size'] has to be what it was built for"
        ) from error


def collect(model: nn.Module, pixels: Tensor) -> Seen:
    """The grids after each block on a batch of images; what follows the last block is not computed.

    Gradients are recorded where they are switched on.

    Args:
        model: see `placed_blocks`.
        pixels: (B, 3, H, W), as `prepare` makes them.

    Raises:
        FreqFormerError: the network has no blocks, or some were not called on these images.
    """
    blocks = placed_blocks(model)
    seen = Seen(pixels)
    on_grid, hooks = (_as_it_is, []) if isinstance(blocks[0].module, Block) else _gridder(inner_network(model))

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.stem = on_grid(args[0])

    def leave(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.grids.append(on_grid(output))
        if len(seen.grids) == len(blocks):
            raise _Enough

    hooks.append(blocks[0].module.register_forward_pre_hook(enter))
    hooks += [block.module.register_forward_hook(leave) for block in blocks]
    if is_dense(model):
        taken: nn.Module = model.backbone  # type: ignore[assignment]
        hooks.append(taken.register_forward_pre_hook(lambda _, args: setattr(seen, "pixels", args[0])))
    try:
        with in_evaluation(model):
            run(model, pixels)
    except _Enough:
        return seen
    finally:
        for hook in hooks:
            hook.remove()
    raise FreqFormerError(f"only {len(seen.grids)} of {len(blocks)} blocks were called on these images")


class _Enough(Exception):
    """The last block has given what was asked for."""


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _gridder(network: nn.Module) -> tuple[Callable[[Tensor], Tensor], list[RemovableHandle]]:
    """What makes grids of the tokens of a model of timm, without those before the patches, and the hooks it needs."""
    backbone = _sequence(network)
    grid: list[Grid] = [backbone.grid]

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        grid[:] = [grid_of(module, args[0], output) or backbone.grid]

    def turn(x: Tensor) -> Tensor:
        height, width = grid[0]
        return x if x.ndim == 4 else x[:, x.shape[1] - height * width :].unflatten(1, (height, width))

    embedding = patch_embedding(network) if backbone.shows_grid else None
    return turn, [] if embedding is None else [embedding.register_forward_hook(note)]


def _sequence(network: nn.Module) -> Backbone:
    try:
        return Backbone(network)
    except FreqFormerError as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise FreqFormerError(
            f"cannot look into {type(network).__name__}: {reason.replace(', and adapters need', '; needed is')}"
        ) from error


def _kind(block: nn.Module) -> str:
    inside = list(block.modules())
    return next((kind for kind, types in _MIXERS.items() if any(isinstance(m, types) for m in inside)), "other")
