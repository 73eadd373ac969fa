"""The one network class: a stem, stages of blocks, a head. A family is a list of parts, not a forward."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from timm.layers import trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..layers import Block, ConvStem, Fitted, MeanPool, Shrink, Stage
from ..ops import stretch_position

Grid = tuple[int, int]
HeadMaker = Callable[[int, int], nn.Module]
Init = Callable[[nn.Module], None]


class SpectralNet(nn.Module):
    """A classifier made of parts; the families' entry points choose them.

    It runs on any image size: filters and position embedding are resampled from the native grid.

    Args:
        stem: from images (B, H, W, in_chans) to the first grid.
        stages: stages of blocks, fine to coarse.
        dims: channels of each stage.
        img_size: native image size (H, W) in pixels.
        num_classes: classes; 0 leaves out the classifier, so ``forward`` returns pooled features.
        position: whether a learned position embedding is added to the first grid.
        norm_first: whether the last norm comes before pooling.
        pool: from the last grid to a vector; its mean by default.
        make_head: makes the classifier of a number of channels and classes.
        token_label: whether a second classifier scores every token; half the largest score of each class is added
            to the logits (Jiang et al., "All Tokens Matter", NeurIPS 2021).
        out_norms: whether the features of ``forward_intermediates`` have norms of their own, for dense tasks.
        drop_rate: dropout before the classifier.
        init: sets the weights of a module.
        global_pool: ``"avg"`` pools; ``""`` leaves it out, so that ``forward`` returns a grid.

    Raises:
        ValueError: another pooling.
    """

    output_fmt = "NHWC"
    """timm's name for the layout of ``forward_features``."""
    pretrained_cfg: dict[str, Any]
    """timm's description, set by its factory: preprocessing, and ``label_names`` where a checkpoint has them."""

    def __init__(
        self,
        stem: Shrink | ConvStem,
        stages: Sequence[Stage],
        dims: Sequence[int],
        *,
        img_size: Grid,
        num_classes: int,
        position: bool = False,
        norm_first: bool = True,
        pool: nn.Module | None = None,
        make_head: HeadMaker = nn.Linear,
        token_label: bool = False,
        out_norms: bool = False,
        drop_rate: float = 0.0,
        init: Init,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.global_pool = _checked_pool(global_pool)
        self.img_size = img_size
        self.grid_size = stem.grid(img_size)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = dim = dims[-1]
        self.norm_first = norm_first
        self.token_label = token_label
        self.pruned: list[str] = []
        """Modules that ``prune_intermediate_layers`` removed."""
        self._make_head = make_head
        self._init = init

        self.stem = stem
        self.pos_embed = nn.Parameter(torch.zeros(1, *self.grid_size, dims[0])) if position else None
        self.position = Fitted(self.grid_size, stretch_position)
        self.stages = nn.Sequential(*stages)
        self.pool = pool or MeanPool()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.head, self.token_head = self._heads()
        self.feature_info = self._feature_info(dims)
        channels = [info["num_chs"] for info in self.feature_info]
        self.out_norms = nn.ModuleList(nn.LayerNorm(c, eps=1e-6) for c in channels) if out_norms else None

        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=0.02)
        self.apply(init)

    def grids(self, size: Grid) -> list[Grid]:
        """The (H', W') of each stage on images of a size (H, W) in pixels."""
        grids = [self.stem.grid(size)]
        for stage in self._stages()[1:]:
            shrink = stage.downsample
            grids.append(shrink.grid(grids[-1]) if isinstance(shrink, Shrink) else grids[-1])
        return grids

    def forward_features(self, x: Tensor, swap: Tensor | None = None) -> Tensor:
        """From images to the last grid.

        Args:
            x: images (B, in_chans, H, W).
            swap: True where a token of the first grid is taken from the sample opposite in the batch, bool on that
                grid; mix-token (Jiang et al., "All Tokens Matter", NeurIPS 2021) cuts a box.

        Returns:
            The last grid (B, H', W', C), normalised if the family does that first.
        """
        x = self._embed(x)
        if swap is not None:
            x = torch.where(swap[..., None], x.flip(0), x)
        x = self.stages(x)
        return self.norm(x) if self.norm_first else x

    def forward_head(self, x: Tensor, pre_logits: bool = False, return_tokens: bool = False) -> Any:
        """From the last grid to classes.

        Args:
            x: what ``forward_features`` returns, (B, H, W, C).
            pre_logits: return the pooled features (B, C).
            return_tokens: return the class logits (B, classes), without the tokens' share, and the tokens'
                logits (B, H, W, classes).

        Returns:
            Logits (B, classes), or what is asked for.

        Raises:
            ValueError: tokens' logits of a model made without ``token_label``.
        """
        if return_tokens and self.token_head is None:
            raise ValueError("this model has no token logits: make it with token_label=True and at least one class")
        pooled = self.pool(x) if self.global_pool else x
        pooled = self.head_drop(pooled if self.norm_first else self.norm(pooled))
        if pre_logits:
            return pooled
        logits = self.head(pooled)
        if self.token_head is None or not (return_tokens or self.global_pool):
            return logits
        tokens = self.token_head(self.norm(x))
        return (logits, tokens) if return_tokens else logits + 0.5 * tokens.amax(dim=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_tokens(self, x: Tensor, swap: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images (B, in_chans, H, W) to their logits (B, classes) and their tokens' (B, H', W', classes).

        Args:
            x: images.
            swap: see ``forward_features``.

        Raises:
            ValueError: the model was made without ``token_label``.
        """
        return self.forward_head(self.forward_features(x, swap), return_tokens=True)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The features of every stage (of every block, where there is one stage), as timm's models give them.

        Args:
            x: images (B, in_chans, H, W).
            indices: which features: the last n, a list, or all.
            norm: apply the last norm to those it fits; norms of the features' own are always applied.
            stop_early: stop after the last feature asked for.
            output_fmt: ``"NCHW"`` or ``"NHWC"``.
            intermediates_only: return the features alone.

        Returns:
            A list of features, or (the last grid, as ``forward_features`` returns it, the list).

        Raises:
            ValueError: another format.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be NCHW or NHWC, got {output_fmt!r}")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        x = self._embed(x)
        features = []
        for index, part in enumerate(self._tapped()):
            if stop_early and index > last:
                break
            x = part(x)
            if index in taken:
                feature = x if self.out_norms is None else self.out_norms[index](x)
                if norm and feature.shape[-1] == self.embed_dim:
                    feature = self.norm(feature)
                features.append(feature.permute(0, 3, 1, 2) if output_fmt == "NCHW" else feature)
        if intermediates_only:
            return features
        return (self.norm(x) if self.norm_first else x), features

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what features of these indices do not need; returns the indices."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        parts = [info["module"] for info in self.feature_info]
        self.pruned += parts[last + 1 :]
        first, *others = self._stages()
        if others:
            self.stages = self.stages[: last + 1]
        else:
            first.blocks = first.blocks[: last + 1]
        for index in range(len(self.feature_info)) if self.out_norms is not None else ():
            if index not in taken:
                self.pruned.append(f"out_norms.{index}")
                self.out_norms[index] = nn.Identity()  # type: ignore[index]
        if prune_norm:
            self.pruned.append("norm")
            self.norm = nn.Identity()  # type: ignore[assignment]
        if prune_head:
            self.pruned += ["pool", "head", "token_head"]
            self.pool = MeanPool()
            self.reset_classifier(0)
        return taken

    def get_classifier(self) -> nn.Module:
        """The classifier (identity when there are no classes)."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one for ``num_classes`` classes (0: none), and the pooling if named."""
        if global_pool is not None:
            self.global_pool = _checked_pool(global_pool)
        self.num_classes = num_classes
        reference = next(self.stem.parameters())
        for name, head in zip(("head", "token_head"), self._heads(), strict=True):
            setattr(self, name, None if head is None else head.to(reference.device, reference.dtype).apply(self._init))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep the activations of stages' blocks only at their borders in training, and compute them twice."""
        for stage in self._stages():
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone, beside norms and biases."""
        return {"pos_embed"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups of layers, for learning rates that decay with depth."""
        if coarse:
            blocks: Any = r"^stages\.(\d+)" if len(self.stages) > 1 else r"^stages\.0\.blocks\.(\d+)"
        else:
            blocks = [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.norm", (99998,)),
                (r"^(?:norm|out_norms|pool)", (99999,)),
            ]
        return {"stem": r"^(?:stem|pos_embed)", "blocks": blocks}

    def _embed(self, x: Tensor) -> Tensor:
        x = self.stem(x.permute(0, 2, 3, 1))
        if self.pos_embed is None:
            return x
        return x + self.position(self.pos_embed, (x.shape[1], x.shape[2]))

    def _stages(self) -> list[Stage]:
        return cast(list[Stage], list(self.stages))

    def _tapped(self) -> Sequence[nn.Module]:
        """What each feature comes out of: the blocks of the only stage, or the stages."""
        first, *others = self._stages()
        return [first, *others] if others else list(first.blocks)

    def _feature_info(self, dims: Sequence[int]) -> list[dict[str, Any]]:
        reduction = self.stem.stride
        first, *others = self._stages()
        if not others:
            blocks = range(len(first.blocks))
            return [{"num_chs": dims[0], "reduction": reduction, "module": f"stages.0.blocks.{i}"} for i in blocks]
        return [{"num_chs": dim, "reduction": reduction * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)]

    def _heads(self) -> tuple[nn.Module, nn.Module | None]:
        if self.num_classes == 0:
            return nn.Identity(), None
        token_head = self._make_head(self.embed_dim, self.num_classes) if self.token_label else None
        return self._make_head(self.embed_dim, self.num_classes), token_head


def make_stages(
    stem: Shrink | ConvStem,
    img_size: Grid,
    depths: Sequence[int],
    drop_path_rate: float,
    block: Callable[[int, Grid, float], Block],
    downsample: Callable[[int], Shrink] | None = None,
    norm: Callable[[int], nn.Module | None] = lambda stage: None,
) -> list[Stage]:
    """Stages of blocks on the grids that an image size leads to.

    Args:
        stem: makes the first grid.
        img_size: native image size (H, W) in pixels.
        depths: blocks of each stage.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        block: makes a block from its stage, grid and rate of stochastic depth.
        downsample: makes what leads to a stage after the first.
        norm: makes the norm that ends a stage, or None.

    Returns:
        The stages.
    """
    rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
    grid = stem.grid(img_size)
    stages = []
    for index, depth in enumerate(depths):
        shrink = downsample(index) if index and downsample is not None else None
        grid = grid if shrink is None else shrink.grid(grid)
        stages.append(Stage([block(index, grid, next(rates)) for _ in range(depth)], shrink, norm(index)))
    return stages


def init_linear(module: nn.Module) -> None:
    """Truncated normal weights and no biases for linear layers alone."""
    if isinstance(module, nn.Linear):
        truncated_normal(module)


def truncated_normal(module: nn.Module) -> None:
    """Truncated normal weights and no biases for linear layers and convolutions."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _checked_pool(global_pool: str) -> str:
    if global_pool not in ("avg", ""):
        raise ValueError(f"global_pool must be 'avg' or '' (none), got {global_pool!r}")
    return global_pool
