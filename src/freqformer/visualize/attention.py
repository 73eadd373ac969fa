"""Where the attention of a network looks on an image."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters.backbone import Grid, grid_of, in_evaluation, patch_embedding
from ..data.images import Source
from ..errors import FreqFormerError
from ..layers import Attention
from ..layers.heads import ClassAttention
from .features import denormalised, inner_network, is_dense, placed_blocks, prepare, run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Scores that are in memory at once: heads times queries times keys.
_SCORES = 2**24
_MOST_PANELS = 12
_PER_ROW = 6


@dataclass(frozen=True)
class AttentionMap:
    """What one attention does on an image; maps are averaged over its heads."""

    name: str
    heads: int
    grid: Grid
    """(H, W) of the patches."""
    overall: np.ndarray
    """How much each patch is looked at, (H, W): by the class token where there is one, otherwise by all in the mean."""
    by_class: bool
    """Whether ``overall`` is the class token's."""
    query: np.ndarray | None
    """How much the token in the chosen place looks at each patch, (H, W); None where only a class token asks."""
    spread: float
    """The mean entropy of the queries' attention over that of equal attention to every token, 0 to 1."""


def attention(model: nn.Module, image: Source, *, query: tuple[float, float] = (0.5, 0.5)) -> "Figure":
    """Draw the attention of a network's blocks over an image.

    Args:
        model: a classifier, adapted or not, a detector or a segmenter.
        image: a PIL image or a path; the model prepares it itself.
        query: the place whose token's attention is drawn, as shares of the height and the width.

    Returns:
        For each block with attention, at most twelve of them, how much each patch is looked at and, below, where the
        token in the chosen place looks.

    Raises:
        FreqFormerError: an image that cannot be read, a network without attention, one whose attention is more than
            a softmax of queries and keys, or a place outside the image.
    """
    return draw_attention(*measure_attention(model, image, query=query), query=query)


@torch.no_grad()
def measure_attention(
    model: nn.Module, image: Source, *, query: tuple[float, float] = (0.5, 0.5)
) -> tuple[np.ndarray, list[AttentionMap]]:
    """The image as the network took it, (H, W, 3) in 0..1, and the maps of its attentions in their order.

    Queries and keys are read where the network computes them, and the softmax of their products is made again, some
    queries at a time; that times the values must be what the network itself goes on with.

    Args:
        model: see `attention`.
        image: see `attention`.
        query: see `attention`.

    Raises:
        FreqFormerError: see `attention`.
    """
    if not all(0 <= share <= 1 for share in query):
        raise FreqFormerError(f"a place in the image is two shares of its sides, 0 to 1, not {query}")
    found = attentions(model)
    if not found:
        raise FreqFormerError(f"this network has no attention to draw: {_instead(model)}")
    pixels = prepare(model, image)[None]
    network = inner_network(model)
    has_class = getattr(network, "cls_token", None) is not None
    grids: list[Grid | None] = []
    taken = [pixels]
    caught: list[_Caught] = []

    hooks = []
    for name, module in found.items():
        one = _Caught(name, module)
        # A class attention's tokens lie in a row, its block's on a grid.
        above = model.get_submodule(name.rpartition(".")[0])
        hooks += [above.register_forward_pre_hook(one.enter), *one.hooks(caught)]
    if (embedding := patch_embedding(network)) is not None:
        hooks.append(embedding.register_forward_hook(lambda m, args, out: grids.append(grid_of(m, args[0], out))))
    if is_dense(model):
        within: nn.Module = model.backbone  # type: ignore[assignment]
        hooks.append(within.register_forward_pre_hook(lambda _, args: taken.__setitem__(0, args[0])))
    maps = []
    try:
        with in_evaluation(model):
            run(model, pixels)
        grid = next((one for one in grids if one is not None), None)
        for one in caught:
            maps.append(_map(one, one.grid or grid, query, has_class))
    finally:
        for hook in hooks:
            hook.remove()
    if not maps:
        raise FreqFormerError("no attention of this network was called on the image")
    return _picture(model, taken[0][0]), maps


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """The attentions of a network by name: this package's, and timm's of one ``qkv`` and several heads."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (Attention, ClassAttention))
        or (
            isinstance(getattr(module, "qkv", None), nn.Module)
            and isinstance(getattr(module, "proj", None), nn.Module)
            and hasattr(module, "num_heads")
        )
    }


def softmax_chunks(q: Tensor, k: Tensor, scale: float) -> Iterator[tuple[slice, Tensor]]:
    """The attention of some queries at a time, so that long sequences fit into memory.

    Args:
        q: queries (heads, N, size).
        k: keys (heads, M, size).
        scale: what their products are multiplied by.

    Yields:
        Which queries, and their attention (heads, n, M).
    """
    heads, count = q.shape[0], q.shape[1]
    step = max(1, _SCORES // (heads * k.shape[1]))
    for first in range(0, count, step):
        part = slice(first, min(first + step, count))
        yield part, ((q[:, part].float() * scale) @ k.float().transpose(-2, -1)).softmax(dim=-1)


@dataclass
class _Caught:
    """What passes in one attention: its projections, and what it goes on with."""

    name: str
    module: Any
    grid: Grid | None = None
    has_more: bool = False
    """Whether it was given more than tokens."""
    parts: dict[str, Tensor] = field(default_factory=dict)

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note the grid that tokens lie on, where they come as one."""
        if args and isinstance(args[0], Tensor) and args[0].ndim == 4:
            self.grid = args[0].shape[1], args[0].shape[2]

    def hooks(self, caught: "list[_Caught]") -> list[Any]:
        """Hooks that keep it, and add it to a list when it is complete."""

        def keep(part: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
                self.parts[part] = output[0].detach()

            return hook

        def given(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            # Such as a mask, or rotations of queries and keys, which change small ones too little to be seen behind.
            self.has_more = any(isinstance(one, Tensor) for one in (*args[1:], *named.values()))

        def leave(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.parts["mixed"] = args[0][0].detach()
            caught.append(self)

        after = self.module.proj
        norm = getattr(self.module, "norm", None)
        if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity):
            after = norm
        names = ("q", "kv") if isinstance(self.module, ClassAttention) else ("qkv",)
        return [
            self.module.register_forward_pre_hook(self.enter),
            self.module.register_forward_pre_hook(given, with_kwargs=True),
            *(getattr(self.module, name).register_forward_hook(keep(name)) for name in names),
            after.register_forward_pre_hook(leave),
        ]

    def queries_keys_values(self) -> tuple[Tensor, Tensor, Tensor]:
        """Each (heads, tokens, size)."""
        heads = self.module.num_heads
        if isinstance(self.module, ClassAttention):
            k, v = self.parts["kv"].unflatten(-1, (2, heads, -1)).permute(1, 2, 0, 3).unbind(0)
            return self.parts["q"].unflatten(-1, (heads, 1, -1)), k, v
        qkv = self.parts["qkv"]
        q, k, v = qkv.reshape(-1, 3, heads, qkv.shape[-1] // (3 * heads)).permute(1, 2, 0, 3).unbind(0)
        identity = nn.Identity()
        return getattr(self.module, "q_norm", identity)(q), getattr(self.module, "k_norm", identity)(k), v


def _map(caught: _Caught, grid: Grid | None, query: tuple[float, float], has_class: bool) -> AttentionMap:
    if caught.has_more:
        raise _unknown(caught)
    try:
        q, k, v = caught.queries_keys_values()
    except (KeyError, RuntimeError, ValueError) as error:
        # BEiT takes its projection's weights without calling it.
        raise _unknown(caught) from error
    heads, tokens = k.shape[:2]
    of_class = isinstance(caught.module, ClassAttention)
    if grid is None or grid[0] * grid[1] > tokens:
        grid = _square_of(tokens - int(of_class), caught)
    patches = grid[0] * grid[1]
    prefix = tokens - patches
    chosen = prefix + _place(query[0], grid[0]) * grid[1] + _place(query[1], grid[1])
    received = torch.zeros(tokens, dtype=torch.float64)
    at: dict[int, np.ndarray] = {}
    entropy, right = 0.0, True
    mixed = caught.parts["mixed"].reshape(-1, heads * v.shape[-1]).float()
    tolerance = max(1e-2, 4 * torch.finfo(caught.parts["mixed"].dtype).eps)
    scale = float(getattr(caught.module, "scale", q.shape[-1] ** -0.5))
    for part, weights in softmax_chunks(q, k, scale):
        again = (weights @ v.float()).transpose(0, 1).flatten(1)
        right = right and _same(again, mixed[part] if len(mixed) == q.shape[1] else mixed, tolerance)
        received += weights.double().sum(dim=(0, 1)).cpu()
        entropy -= float(torch.special.xlogy(weights, weights).double().sum())
        for place in {0, chosen} & set(range(part.start, part.stop)):
            at[place] = weights[:, place - part.start].mean(dim=0).double().cpu().numpy()
    if not right:
        raise _unknown(caught)
    queries = q.shape[1]
    # Without a class token what comes before the patches are registers or prompts.
    by_class = of_class or (has_class and prefix > 0)
    overall = at[0] if by_class else received.numpy() / (heads * queries)
    return AttentionMap(
        caught.name,
        heads,
        grid,
        overall[prefix:].reshape(grid),
        by_class,
        at[chosen][prefix:].reshape(grid) if queries == tokens else None,
        entropy / (heads * queries * max(float(np.log(tokens)), 1e-12)),
    )


def _same(again: Tensor, mixed: Tensor, tolerance: float) -> bool:
    """Whether what was made again is what the network went on with, up to a share of the largest."""
    if again.shape != mixed.shape:
        return False
    scale = float(mixed.abs().max())
    return float((again - mixed).abs().max()) <= tolerance * scale + 1e-6


def _unknown(caught: _Caught) -> FreqFormerError:
    return FreqFormerError(
        f"the attention {caught.name} ({type(caught.module).__name__}) is more than a softmax of queries and keys, "
        "such as windows, positions between tokens or gates: its maps cannot be drawn"
    )


def _square_of(patches: int, caught: _Caught) -> Grid:
    side = int(patches**0.5)
    if side * side != patches:
        raise FreqFormerError(f"the {patches} tokens of the attention {caught.name} lie on no grid that is known")
    return side, side


def _place(share: float, side: int) -> int:
    return min(int(share * side), side - 1)


def _instead(model: nn.Module) -> str:
    try:
        kinds = sorted({block.kind for block in placed_blocks(model)})
    except FreqFormerError:
        return "it has no blocks of a kind that is known"
    if "attention" in kinds:
        return "that of its blocks is of no kind that is known"
    return f"its blocks are {' and '.join(kinds)}; `freqformer visualize filters` and `response` draw those"


def _picture(model: nn.Module, pixels: Tensor) -> np.ndarray:
    """An image as the network took it, with its colours again."""
    cfg: Any = model.backbone.cfg if is_dense(model) else model.pretrained_cfg  # type: ignore[union-attr]
    return denormalised(pixels, cfg).clamp(0, 1).permute(1, 2, 0).numpy()


def draw_attention(
    picture: np.ndarray, maps: Sequence[AttentionMap], *, query: tuple[float, float] = (0.5, 0.5)
) -> "Figure":
    """Draw what `measure_attention` found; see `attention`."""
    from matplotlib.figure import Figure

    count = min(len(maps), _MOST_PANELS)
    shown = [maps[place] for place in sorted({round(float(p)) for p in np.linspace(0, len(maps) - 1, count)})]
    labels = block_labels([one.name for one in shown])
    height, width = picture.shape[:2]
    # The image itself comes first.
    columns = min(_PER_ROW, len(shown)) + 1
    bands = -(-len(shown) // (columns - 1))
    panel = 1.9
    figure = Figure(figsize=(panel * columns + 0.3, bands * (2 * panel * height / width + 0.75)), layout="constrained")
    panels = figure.subplots(2 * bands, columns, squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    panels[0, 0].imshow(picture, extent=(0, 1, 1, 0), aspect=height / width)
    panels[0, 0].set_title("the image and\nthe query", fontsize=8)
    _mark(panels[0, 0], query, shown[0].grid)
    figure.supxlabel("figures: the map's smallest and largest value, in multiples of equal attention", fontsize=8)
    for number, one in enumerate(shown):
        top, column = 2 * (number // (columns - 1)), 1 + number % (columns - 1)
        name = labels[number]
        what = "class token" if one.by_class else "all tokens"
        _overlay(panels[top, column], picture, one.overall, f"{name}\n{what}")
        if one.query is not None:
            _overlay(panels[top + 1, column], picture, one.query, "the query")
            _mark(panels[top + 1, column], query, one.grid)
    return figure


def _overlay(axes: "Axes", picture: np.ndarray, values: np.ndarray, title: str) -> None:
    """A map over the image in grey, in colours from its smallest value to its largest."""
    height, width = picture.shape[:2]
    where: dict[str, Any] = {"extent": (0, 1, 1, 0), "aspect": height / width}
    axes.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=1.2, **where)
    axes.imshow(values, cmap="inferno", alpha=0.65, interpolation="bilinear", **where)
    low, high = values.min() * values.size, values.max() * values.size
    axes.set_title(f"{title}, {low:.2g} to {high:.2g}", fontsize=8)


def block_labels(names: Sequence[str]) -> list[str]:
    """Modules' names in a few words: of a pyramid ``stages.2.blocks.1.token_mixer`` is stage 3, block 1."""
    stages = [re.search(r"stages\.(\d+)", name) for name in names]
    blocks = [re.search(r"blocks\.(\d+)", name) for name in names]
    pyramid = any(stage is not None and stage[1] != "0" for stage in stages)
    labels = []
    for name, stage, block in zip(names, stages, blocks, strict=True):
        if block is None:
            labels.append(name.rpartition(".")[0] or name)
        else:
            before = f"stage {int(stage[1]) + 1}, " if pyramid and stage else ""
            labels.append(f"{before}block {block[1]}")
    return labels


def _mark(axes: "Axes", query: tuple[float, float], grid: Grid) -> None:
    row, column = ((_place(share, side) + 0.5) / side for share, side in zip(query, grid, strict=True))
    axes.plot(column, row, "+", color="deepskyblue", markersize=8, markeredgewidth=1.5)
