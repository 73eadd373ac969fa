"""What an adapter has to know of a model: its sequence of blocks, and what its tokens are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import FreqFormerError
from ..ops import is_symbolic

Grid = tuple[int, int]

_SEQUENCES = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Tokens:
    """The sequence that reaches a place between two blocks."""

    grid: Grid | None
    """(H, W) of the patch tokens; None in a batch of images of many sizes."""
    prefix: int
    """Class, distillation and register tokens, which come first."""
    prompts: int
    """Prompt tokens, which come after these."""

    def on_patches(self, x: Tensor, function: Callable[[Tensor], Tensor], *, prompts: bool = False) -> Tensor:
        """Replace the patch tokens of a sequence by a function of them.

        Args:
            x: (B, N, C), or (B, H, W, C) of a model whose tokens lie on a grid.
            function: from (B, n, C), or (B, H, W, C), to its own shape.
            prompts: whether the prompt tokens, which come before the patches, belong to them.

        Raises:
            FreqFormerError: the patches fill no grid.
        """
        if x.ndim == 4:
            return function(x)
        if self.grid is None:
            raise FreqFormerError("a filter needs images of one size: these patches come from images of many")
        patches, (height, width) = x.shape[1] - self.prefix - self.prompts, self.grid
        if not is_symbolic(patches, height, width) and patches != height * width:
            raise FreqFormerError(
                f"a filter needs every patch: {patches} of {height}x{width} arrive; where the model drops patches in "
                "training, freqformer.adapters.set_mode keeps its frozen part in evaluation mode"
            )
        before = self.prefix + (0 if prompts else self.prompts)
        if before == 0:
            return function(x)
        return torch.cat((x[:, :before], function(x[:, before:])), dim=1)


class Backbone:
    """A model whose tokens pass through a sequence of blocks, one shape all the way.

    Args:
        model: any timm model of transformer blocks, or an isotropic one of this package.

    Raises:
        FreqFormerError: the model has no such sequence; the message says why.
    """

    def __init__(self, model: nn.Module) -> None:
        self.name = _name(model)
        self.path, self.blocks = _blocks(model, self.name)
        seen = _probe(model, self.blocks, self.name)
        self.dim, self.layout, self.grid, self.prefix = seen.dim, seen.layout, seen.grid, seen.prefix
        self.shows_grid = seen.shows_grid
        """Whether the patch embedding tells the grid of the images that come."""
        self.bypassed = seen.bypassed
        """Linear maps, by their names in the model, that are not called: nothing can be put in their place."""
        self.sketch = _sketch(self.path, self.blocks)

    @property
    def depth(self) -> int:
        """How many blocks there are; there is a place before each and one after the last."""
        return len(self.blocks)

    def look_again(self) -> None:
        """Sketch the weights anew, after something was folded into them."""
        self.sketch = _sketch(self.path, self.blocks)

    def describe(self) -> dict[str, Any]:
        """Plain containers that tell this backbone from others."""
        return {
            "name": self.name,
            "depth": self.depth,
            "dim": self.dim,
            "prefix_tokens": self.prefix,
            "grid": list(self.grid),
            "sketch": self.sketch,
        }

    def require(self, described: dict[str, Any], where: str) -> None:
        """Refuse what was trained on another backbone, or on other weights of the same one.

        Args:
            described: what `describe` returned there.
            where: what it was read from, for the error.

        Raises:
            FreqFormerError: it does not belong here.
        """
        own = self.describe()
        for field, what in (("depth", "blocks"), ("dim", "channels"), ("prefix_tokens", "prefix tokens")):
            if described.get(field) != own[field]:
                raise FreqFormerError(
                    f"{where} was trained on {described.get('name')} with {described.get(field)} {what}, and "
                    f"{self.name} has {own[field]}: load it onto the model it was trained on"
                )
        theirs, ours = described.get("sketch"), own["sketch"]
        # Half precision moves a sketch by 0.01 at most, other weights by about 1.
        if theirs and ours and (len(theirs) != len(ours) or not np.allclose(theirs, ours, rtol=0, atol=0.05)):
            raise FreqFormerError(
                f"{where} was trained on other weights of {described.get('name')} than these of {self.name}: load the "
                "pre-trained weights that it was trained on"
            )


def grid_of(module: Any, image: Tensor, output: Any) -> Grid | None:
    """The (H, W) of the patches that a patch embedding makes of an image (B, channels, height, width)."""
    if isinstance(output, tuple) and len(output) == 2:
        # XCiT's and NaFlexViT's return the tokens and their grid, or None for a batch of images of many sizes.
        return tuple(output[1]) if isinstance(output[1], tuple) else None
    if hasattr(module, "dynamic_feat_size"):
        height, width = module.dynamic_feat_size((image.shape[-2], image.shape[-1]))
        return height, width
    if isinstance(output, Tensor) and output.ndim == 4:
        return output.shape[1], output.shape[2]
    if isinstance(image, Tensor) and image.ndim == 4 and (patch := getattr(module, "patch_size", None)) is not None:
        rows, columns = patch if isinstance(patch, tuple) else (patch, patch)
        return image.shape[2] // rows, image.shape[3] // columns
    return None


def patch_embedding(model: nn.Module) -> nn.Module | None:
    """The module that makes patches of an image."""
    names = ("patch_embed", "stem", "embeds")
    inner = owner(model)
    return next((found for name in names if isinstance(found := getattr(inner, name, None), nn.Module)), None)


def owner(model: nn.Module) -> nn.Module:
    """The module that has the blocks: the model, or the encoder within it where there is only one."""
    return model.get_submodule(_owner_path(model))


def _owner_path(model: nn.Module) -> str:
    if isinstance(getattr(model, "stages", None), _SEQUENCES) or isinstance(getattr(model, "blocks", None), _SEQUENCES):
        return ""
    inner = [n for n, m in model.named_modules() if isinstance(getattr(m, "blocks", None), _SEQUENCES)]
    return inner[0] if len(inner) == 1 else ""


def _name(model: nn.Module) -> str:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return str(cfg.get("architecture") or type(model).__name__)


def _blocks(model: nn.Module, name: str) -> tuple[str, list[nn.Module]]:
    inner = owner(model)
    stages = getattr(inner, "stages", None)
    if isinstance(stages, _SEQUENCES):
        if len(stages) != 1:
            raise FreqFormerError(
                f"cannot adapt {name}: it is a pyramid of {len(stages)} stages, and adapters need one sequence of "
                "blocks at one resolution"
            )
        found, path = getattr(stages[0], "blocks", None), "stages.0.blocks"
    else:
        found, path = getattr(inner, "blocks", None), "blocks"
    if not isinstance(found, _SEQUENCES) or len(found) == 0:
        several = sum(isinstance(getattr(m, "blocks", None), _SEQUENCES) for m in model.modules())
        why = (
            f"it has {several} sequences of blocks" if several else "it has no sequence of blocks (no module `blocks`)"
        )
        raise FreqFormerError(f"cannot adapt {name}: {why}, and adapters need one at one resolution")
    return ".".join(filter(None, (_owner_path(model), path))), list(found)


@dataclass
class _Seen:
    dim: int
    layout: str
    grid: Grid
    prefix: int
    shows_grid: bool
    bypassed: frozenset[str]


def _probe(model: nn.Module, blocks: list[nn.Module], name: str) -> _Seen:
    """Watch one forward of a blank image: what goes into the blocks and which linear maps are called."""
    shapes: list[Any] = []
    outputs: list[Any] = []
    grids: list[Grid | None] = []
    called: set[int] = set()
    hooks = [block.register_forward_pre_hook(lambda _, args: shapes.append(_shape(args))) for block in blocks]
    hooks.append(blocks[-1].register_forward_hook(lambda _, args, out: outputs.append(_shape((out,)))))
    if (embedding := patch_embedding(model)) is not None:
        hooks.append(embedding.register_forward_hook(lambda m, args, out: grids.append(grid_of(m, args[0], out))))
    linears = {f"{n}": m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    hooks += [m.register_forward_hook(lambda m, *_: called.add(id(m))) for m in linears.values()]
    try:
        with in_evaluation(model), torch.no_grad():
            model(blank_image(model))
    except Exception as error:
        raise FreqFormerError(
            f"cannot adapt {name}: a blank image does not pass through it ({type(error).__name__}: {error})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if len(shapes) != len(blocks) or len(outputs) != 1 or None in (*shapes, *outputs):
        raise FreqFormerError(f"cannot adapt {name}: its blocks do not pass on one tensor of tokens, one to the next")
    first = shapes[0]
    if set(shapes) != {first} or outputs[0] != first:
        other = next(shape for shape in (*shapes, *outputs) if shape != first)
        raise FreqFormerError(
            f"cannot adapt {name}: its tokens change shape between the blocks, from {first[1:]} to {other[1:]}"
        )
    dim = first[-1]
    if len(first) == 4:
        wide = getattr(model, "embed_dim", getattr(model, "num_features", dim))
        if dim != wide:
            raise FreqFormerError(f"cannot adapt {name}: its features {first[1:]} are not channels-last")
        grid, layout, prefix = (first[1], first[2]), "grid", 0
    elif len(first) == 3:
        grid = next((g for g in grids if g is not None), None) or _square(model, first[1], name)
        layout, prefix = "sequence", first[1] - grid[0] * grid[1]
        if prefix < 0:
            raise FreqFormerError(
                f"cannot adapt {name}: {first[1]} tokens reach its blocks, fewer than its grid of {grid[0]}x{grid[1]}"
            )
    else:
        raise FreqFormerError(f"cannot adapt {name}: its blocks take tensors of shape {first}, not tokens")
    bypassed = frozenset(n for n, m in linears.items() if id(m) not in called)
    shows_grid = layout == "sequence" and any(g is not None for g in grids)
    return _Seen(dim, layout, grid, prefix, shows_grid, bypassed)


def _square(model: nn.Module, tokens: int, name: str) -> Grid:
    patches = tokens - int(getattr(owner(model), "num_prefix_tokens", 0))
    side = isqrt(max(0, patches))
    if side == 0 or side * side != patches:
        raise FreqFormerError(f"cannot adapt {name}: no patch embedding tells the grid of its {tokens} tokens")
    return side, side


def _shape(args: tuple[Any, ...]) -> tuple[int, ...] | None:
    return tuple(args[0].shape) if args and isinstance(args[0], Tensor) and args[0].ndim in (3, 4) else None


def blank_image(model: nn.Module) -> Tensor:
    """One black image of the size that a model is made for, (1, channels, height, width)."""
    reference = next(model.parameters())
    cfg = getattr(model, "pretrained_cfg", None) or {}
    channels, *size = cfg.get("input_size", (3, 224, 224))
    places = [patch_embedding(model), *model.modules()]
    own = next((found for place in places if (found := getattr(place, "img_size", None)) is not None), None)
    if own is not None:
        size = [own, own] if isinstance(own, int) else list(own)
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is not None:
        channels = convolution.in_channels
    return torch.zeros(1, channels, *size, device=reference.device, dtype=reference.dtype)


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then every module is again in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _sketch(path: str, blocks: list[nn.Module]) -> list[float]:
    """A number of about normal size for each linear map of the blocks, which other weights would not have."""
    numbers = []
    for index, block in enumerate(blocks):
        for name, module in block.named_modules():
            # Tables of positions and filters are other tensors at other image sizes; linear maps are not.
            if not isinstance(module, nn.Linear) or module.weight.is_meta:
                continue
            values = module.weight.detach().flatten()
            chosen = values[:: max(1, len(values) // 1024)][:1024].double().cpu().numpy()
            signs = np.random.RandomState(crc32(f"{index}.{name}".encode())).choice([-1.0, 1.0], len(chosen))
            norm = float(np.linalg.norm(chosen))
            numbers.append(round(float(chosen @ signs) / norm, 3) if norm > 0 else 0.0)
    return numbers
