"""DFFormer and its relatives: MetaFormer pyramids whose mixers are dynamic filters.

Tatsunami and Taki, "FFT-based Dynamic Token Mixer for Vision", AAAI 2024. CDFFormer has separable convolutions in
its first two stages, GFFormer static global filters, and the ablations change one thing of ``dfformer_s18`` each.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import Mlp, to_2tuple
from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..layers import (
    AFNO,
    Block,
    DepthwiseConv,
    DynamicFilter,
    GlobalFilter,
    MlpHead,
    Shrink,
    StarReLU,
    Widened,
)
from .backbone import Grid, SpectralNet, make_stages, truncated_normal
from .build import Published, build, default_cfg

_PAGE = "https://github.com/okojoalg/dfformer"
# The repository prints no figures.
PUBLISHED: dict[str, Published] = {}
_DYNAMIC = ("dynamic",) * 4
_CONV_FIRST = ("conv", "conv", "dynamic", "dynamic")
_ACTS = {"star_relu": StarReLU, "gelu": nn.GELU, "relu": nn.ReLU}

_S18: dict[str, Any] = {}
_S36: dict[str, Any] = {"depths": (3, 12, 18, 3)}
_M36: dict[str, Any] = {**_S36, "embed_dims": (96, 192, 384, 576)}
_B36: dict[str, Any] = {**_S36, "embed_dims": (128, 256, 512, 768)}
_TINY: dict[str, Any] = {"img_size": 32, "embed_dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}

_ends: dict[str, Any] = {"stride": 32, "classifier": "head.fc2", "crop_pct": 1.0, "origin_url": _PAGE}


def _released(name: str) -> dict[str, Any]:
    return default_cfg(**_ends, url=f"{_PAGE}/releases/download/weights/{name}.pth")


default_cfgs = generate_default_cfgs(
    {
        **{
            f"{family}_{size}": _released(f"{family}_{size}")
            for family in ("dfformer", "cdfformer")
            for size in ("s18", "s36", "m36", "b36")
        },
        "gfformer_s18": default_cfg(**_ends),
        **{f"dfformer_s18_{change}": default_cfg(**_ends) for change in ("gelu", "relu", "k2", "d8", "afno")},
        **{
            f"test_{family}": default_cfg(**_ends, img_size=32, num_classes=10)
            for family in ("dfformer", "cdfformer", "gfformer", "afno")
        },
    }
)


def metaformer(
    img_size: int | tuple[int, int] = 224,
    in_chans: int = 3,
    num_classes: int = 1000,
    embed_dims: Sequence[int] = (64, 128, 320, 512),
    depths: Sequence[int] = (3, 3, 9, 3),
    mixers: Sequence[str] = _DYNAMIC,
    num_filters: int = 4,
    routing_ratio: float = 0.25,
    act: str = "star_relu",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    resample: str = "stretch",
    out_norms: bool = False,
    global_pool: str = "avg",
) -> SpectralNet:
    """A pyramid of blocks whose mixers work on twice the channels; shortcuts are scaled in the last two stages.

    Args:
        img_size: native image size in pixels, one number or (H, W); it fixes the native grids.
        in_chans: image channels.
        num_classes: classes; 0 leaves out the classifier.
        embed_dims: channels of each stage.
        depths: blocks of each stage.
        mixers: each stage's mixer: ``"dynamic"``, ``"global"``, ``"conv"`` or ``"afno"``.
        num_filters: filters of a dynamic filter's bank.
        routing_ratio: hidden channels of the routing over those of the grid.
        act: activation in mixers and MLPs: ``"star_relu"``, ``"gelu"`` or ``"relu"``.
        drop_rate: dropout before the last layer of the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        resample: how filters are fitted to other grids, ``"stretch"`` or ``"crop-pad"``.
        out_norms: whether features have norms of their own.
        global_pool: ``"avg"``, the mean over the tokens, or ``""`` for none.

    Returns:
        The network.

    Raises:
        ValueError: there is no such mixer or activation.
    """
    if act not in _ACTS:
        raise ValueError(f"there is no activation {act!r}: choose one of {', '.join(_ACTS)}")
    size = to_2tuple(img_size)
    stem = Shrink(in_chans, embed_dims[0], kernel_size=7, stride=4, padding=2, post_norm=_norm(embed_dims[0]))

    def mixer(stage: int, grid: Grid, wide: int) -> nn.Module:
        match mixers[stage]:
            case "dynamic":
                return DynamicFilter(wide, embed_dims[stage], grid, num_filters, routing_ratio, resample)
            case "global":
                return GlobalFilter(wide, grid, resample)
            case "conv":
                return DepthwiseConv(wide)
            case "afno":
                return AFNO(wide)
        raise ValueError(f"there is no mixer {mixers[stage]!r}: choose dynamic, global, conv or afno")

    def block(stage: int, grid: Grid, drop_path: float) -> Block:
        dim = embed_dims[stage]
        return Block(
            dim,
            Widened(dim, partial(mixer, stage, grid), _ACTS[act]),
            Mlp(dim, 4 * dim, act_layer=_ACTS[act], bias=False),
            mixer_residual=True,
            drop_path=drop_path,
            norm_bias=False,
            residual_scale=stage >= 2,
        )

    def downsample(stage: int) -> Shrink:
        source, dim = embed_dims[stage - 1], embed_dims[stage]
        return Shrink(source, dim, kernel_size=3, stride=2, padding=1, pre_norm=_norm(source))

    return SpectralNet(
        stem,
        make_stages(stem, size, depths, drop_path_rate, block, downsample),
        embed_dims,
        img_size=size,
        num_classes=num_classes,
        norm_first=False,
        make_head=partial(MlpHead, drop_rate=drop_rate),
        out_norms=out_norms,
        init=truncated_normal,
        global_pool=global_pool,
    )


def _norm(dim: int) -> nn.Module:
    return nn.LayerNorm(dim, eps=1e-6, bias=False)


def _metaformer(
    name: str, pretrained: bool, kwargs: dict[str, Any], size: dict[str, Any], **changes: Any
) -> SpectralNet:
    return build(metaformer, name, pretrained, (0, 1, 2, 3), **{**size, **changes, **kwargs})


@register_model
def dfformer_s18(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """DFFormer-S18, 30 M parameters."""
    return _metaformer("dfformer_s18", pretrained, kwargs, _S18)


@register_model
def dfformer_s36(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """DFFormer-S36, 46 M parameters."""
    return _metaformer("dfformer_s36", pretrained, kwargs, _S36)


@register_model
def dfformer_m36(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """DFFormer-M36, 65 M parameters."""
    return _metaformer("dfformer_m36", pretrained, kwargs, _M36)


@register_model
def dfformer_b36(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """DFFormer-B36, 115 M parameters."""
    return _metaformer("dfformer_b36", pretrained, kwargs, _B36)


@register_model
def cdfformer_s18(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """CDFFormer-S18, 30 M parameters."""
    return _metaformer("cdfformer_s18", pretrained, kwargs, _S18, mixers=_CONV_FIRST)


@register_model
def cdfformer_s36(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """CDFFormer-S36, 45 M parameters."""
    return _metaformer("cdfformer_s36", pretrained, kwargs, _S36, mixers=_CONV_FIRST)


@register_model
def cdfformer_m36(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """CDFFormer-M36, 64 M parameters."""
    return _metaformer("cdfformer_m36", pretrained, kwargs, _M36, mixers=_CONV_FIRST)


@register_model
def cdfformer_b36(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """CDFFormer-B36, 113 M parameters."""
    return _metaformer("cdfformer_b36", pretrained, kwargs, _B36, mixers=_CONV_FIRST)


@register_model
def gfformer_s18(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """GFFormer-S18: static global filters in place of the dynamic ones."""
    return _metaformer("gfformer_s18", pretrained, kwargs, _S18, mixers=("global",) * 4)


@register_model
def dfformer_s18_gelu(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """DFFormer-S18 with GELU in place of StarReLU."""
    return _metaformer("dfformer_s18_gelu", pretrained, kwargs, _S18, act="gelu")


@register_model
def dfformer_s18_relu(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """DFFormer-S18 with ReLU in place of StarReLU."""
    return _metaformer("dfformer_s18_relu", pretrained, kwargs, _S18, act="relu")


@register_model
def dfformer_s18_k2(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """DFFormer-S18 with two filters a bank."""
    return _metaformer("dfformer_s18_k2", pretrained, kwargs, _S18, num_filters=2)


@register_model
def dfformer_s18_d8(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """DFFormer-S18 with half the hidden channels in the routing."""
    return _metaformer("dfformer_s18_d8", pretrained, kwargs, _S18, routing_ratio=0.125)


@register_model
def dfformer_s18_afno(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """DFFormer-S18 with AFNO mixers."""
    return _metaformer("dfformer_s18_afno", pretrained, kwargs, _S18, mixers=("afno",) * 4)


@register_model
def test_dfformer(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """A tiny DFFormer for tests: 32x32 images, grids of 8, 4, 2 and 1."""
    return _metaformer("test_dfformer", pretrained, kwargs, _TINY)


@register_model
def test_cdfformer(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """A tiny CDFFormer for tests: 32x32 images, grids of 8, 4, 2 and 1."""
    return _metaformer("test_cdfformer", pretrained, kwargs, _TINY, mixers=_CONV_FIRST)


@register_model
def test_gfformer(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """A tiny GFFormer for tests: 32x32 images, grids of 8, 4, 2 and 1."""
    return _metaformer("test_gfformer", pretrained, kwargs, _TINY, mixers=("global",) * 4)


@register_model
def test_afno(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """A tiny AFNO pyramid for tests: 32x32 images, grids of 8, 4, 2 and 1."""
    return _metaformer("test_afno", pretrained, kwargs, _TINY, mixers=("afno",) * 4)
