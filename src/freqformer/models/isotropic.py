"""The network of GFNet, SpectFormer and FreqFormer on one grid: spectral blocks first, attention deeper."""

from collections.abc import Sequence
from typing import Any

from timm.layers import Mlp, to_2tuple
from torch import nn

from ..layers import Attention, Block, DynamicFilter, GlobalFilter, Shrink, StarReLU, Widened
from .backbone import Grid, SpectralNet, init_linear, make_stages
from .build import build


def isotropic(
    img_size: int | tuple[int, int] = 224,
    patch_size: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    embed_dim: int = 384,
    depth: int = 12,
    spectral_depth: int = 4,
    mixers: Sequence[str] | None = None,
    num_heads: int = 6,
    mlp_ratio: float = 4.0,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    resample: str = "stretch",
    out_norms: bool = False,
    global_pool: str = "avg",
) -> SpectralNet:
    """A classifier whose first blocks mix tokens by a global filter and whose deeper ones attend.

    ``spectral_depth == depth`` is GFNet (Rao et al. 2021), 4 is SpectFormer and FreqFormer (Patro et al. 2023),
    0 a ViT without class token.

    Args:
        img_size: native image size in pixels, one number or (H, W); it fixes the native grid.
        patch_size: side of a patch in pixels.
        in_chans: image channels.
        num_classes: classes; 0 leaves out the classifier.
        embed_dim: channels C of the grid.
        depth: blocks.
        spectral_depth: how many of the first blocks are spectral.
        mixers: each block's mixer in place of ``spectral_depth``: ``"global"``, ``"dynamic"`` (DFFormer's, between
            two pointwise layers) or ``"attention"``.
        num_heads: attention heads.
        mlp_ratio: hidden over input channels of the channel MLPs.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        resample: how filters are fitted to other grids, ``"stretch"`` or ``"crop-pad"``.
        out_norms: whether features have norms of their own.
        global_pool: ``"avg"``, the mean over the tokens, or ``""`` for none.

    Returns:
        The network.

    Raises:
        ValueError: a spectral depth outside 0..depth, mixers that are not one known name a block, heads that do not
            divide the channels, another pooling or resampling.
    """
    if not 0 <= spectral_depth <= depth:
        raise ValueError(f"spectral_depth must be between 0 and depth {depth}, got {spectral_depth}")
    if mixers is None:
        mixers = ["global"] * spectral_depth + ["attention"] * (depth - spectral_depth)
    if len(mixers) != depth:
        raise ValueError(f"mixers must name one for each of the {depth} blocks, got {len(mixers)}")
    size = to_2tuple(img_size)
    stem = Shrink(in_chans, embed_dim, patch_size, patch_size)
    kinds = iter(mixers)

    def make_mixer(kind: str, grid: Grid) -> nn.Module:
        match kind:
            case "global":
                return GlobalFilter(embed_dim, grid, resample)
            case "dynamic":
                return Widened(
                    embed_dim, lambda wide: DynamicFilter(wide, embed_dim, grid, resample=resample), StarReLU
                )
            case "attention":
                return Attention(embed_dim, num_heads)
        raise ValueError(f"there is no mixer {kind!r}: choose global, dynamic or attention")

    def block(stage: int, grid: Grid, drop_path: float) -> Block:
        kind = next(kinds)
        mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio))
        # A global filter's block has one shortcut around mixer and MLP, the others one around each.
        return Block(embed_dim, make_mixer(kind, grid), mlp, mixer_residual=kind != "global", drop_path=drop_path)

    return SpectralNet(
        stem,
        make_stages(stem, size, [depth], drop_path_rate, block),
        [embed_dim],
        img_size=size,
        num_classes=num_classes,
        position=True,
        drop_rate=drop_rate,
        out_norms=out_norms,
        init=init_linear,
        global_pool=global_pool,
    )


def build_isotropic(name: str, pretrained: bool, **arguments: Any) -> SpectralNet:
    """Build a registered isotropic model; ``features_only`` returns the last three blocks' features."""
    return build(isotropic, name, pretrained, min(3, arguments["depth"]), **arguments)
