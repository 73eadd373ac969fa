"""GFNet (Rao et al., "Global Filter Networks for Image Classification", NeurIPS 2021), on one grid and as a pyramid."""

from collections.abc import Sequence
from typing import Any

from timm.layers import Mlp, to_2tuple
from timm.models import generate_default_cfgs, register_model

from ..layers import Block, GlobalFilter, Shrink
from .backbone import Grid, SpectralNet, init_linear, make_stages
from .build import Published, build, default_cfg
from .isotropic import build_isotropic

_PAGE = "https://github.com/raoyongming/GFNet"
_FILES = "https://cloud.tsinghua.edu.cn/f/"

PUBLISHED = {
    "gfnet_ti": Published("7M", "1.3G", 74.6, 92.2),
    "gfnet_xs": Published("16M", "2.8G", 78.6, 94.2),
    "gfnet_s": Published("25M", "4.5G", 80.0, 94.9),
    "gfnet_b": Published("43M", "7.9G", 80.7, 95.1),
    "gfnet_h_ti": Published("15M", "2.0G", 80.1, 95.1),
    "gfnet_h_s": Published("32M", "4.5G", 81.5, 95.6),
    "gfnet_h_b": Published("54M", "8.4G", 82.9, 96.2),
}


def _cfg(name: str, file: str) -> dict[str, Any]:
    stride = 32 if "-h-" in name else 16
    return default_cfg(stride=stride, url=(f"{_FILES}{file}/?dl=1", f"{name}.pth"), origin_url=_PAGE)


default_cfgs = generate_default_cfgs(
    {
        "gfnet_ti": _cfg("gfnet-ti", "3d0c1579aa524a0a99dd"),
        "gfnet_xs": _cfg("gfnet-xs", "e0ab5b1583954a1fa9b2"),
        "gfnet_s": _cfg("gfnet-s", "e5561fa070c44d9399bf"),
        "gfnet_b": _cfg("gfnet-b", "2fbf264597af4d72afb3"),
        "gfnet_h_ti": _cfg("gfnet-h-ti", "b22dd45eccbe462cbbfb"),
        "gfnet_h_s": _cfg("gfnet-h-s", "5229cb4d1daf48e69675"),
        "gfnet_h_b": _cfg("gfnet-h-b", "954c5af21e824ba6b40c"),
        "gfnet_h_n": default_cfg(stride=32),
        "test_gfnet": default_cfg(img_size=32, stride=8, crop_pct=1.0, num_classes=10),
        "test_gfnet_h": default_cfg(img_size=32, stride=32, crop_pct=1.0, num_classes=10),
    }
)


def pyramid(
    img_size: int | tuple[int, int] = 224,
    patch_size: int = 4,
    in_chans: int = 3,
    num_classes: int = 1000,
    embed_dims: Sequence[int] = (64, 128, 256, 512),
    depths: Sequence[int] = (3, 3, 10, 3),
    mlp_ratio: float = 4.0,
    layer_scale: float | None = 1e-3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    resample: str = "stretch",
    out_norms: bool = False,
    global_pool: str = "avg",
) -> SpectralNet:
    """GFNet's pyramid: global filters at every resolution, one residual and a layer scale in each block.

    Args:
        img_size: native image size in pixels, one number or (H, W); it fixes the native grids.
        patch_size: side of a patch in pixels.
        in_chans: image channels.
        num_classes: classes; 0 leaves out the classifier.
        embed_dims: channels of each stage.
        depths: blocks of each stage.
        mlp_ratio: hidden over input channels of the channel MLPs.
        layer_scale: initial scale of each block's branch; None leaves it out.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        resample: how filters are fitted to other grids, ``"stretch"`` or ``"crop-pad"``.
        out_norms: whether features have norms of their own.
        global_pool: ``"avg"``, the mean over the tokens, or ``""`` for none.

    Returns:
        The network.
    """
    size = to_2tuple(img_size)
    stem = Shrink(in_chans, embed_dims[0], patch_size, patch_size)

    def block(stage: int, grid: Grid, drop_path: float) -> Block:
        dim = embed_dims[stage]
        mlp = Mlp(dim, int(dim * mlp_ratio))
        mixer = GlobalFilter(dim, grid, resample)
        return Block(dim, mixer, mlp, mixer_residual=False, drop_path=drop_path, layer_scale=layer_scale)

    def downsample(stage: int) -> Shrink:
        return Shrink(embed_dims[stage - 1], embed_dims[stage], kernel_size=2, stride=2)

    return SpectralNet(
        stem,
        make_stages(stem, size, depths, drop_path_rate, block, downsample),
        embed_dims,
        img_size=size,
        num_classes=num_classes,
        position=True,
        drop_rate=drop_rate,
        out_norms=out_norms,
        init=init_linear,
        global_pool=global_pool,
    )


def _isotropic(name: str, pretrained: bool, kwargs: dict[str, Any], **variant: Any) -> SpectralNet:
    """All blocks spectral."""
    return build_isotropic(name, pretrained, **{"spectral_depth": variant["depth"], **variant, **kwargs})


def _pyramid(name: str, pretrained: bool, kwargs: dict[str, Any], **variant: Any) -> SpectralNet:
    return build(pyramid, name, pretrained, (0, 1, 2, 3), **{**variant, **kwargs})


@register_model
def gfnet_ti(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """GFNet-Ti, 7.5 M parameters."""
    return _isotropic("gfnet_ti", pretrained, kwargs, embed_dim=256, depth=12)


@register_model
def gfnet_xs(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """GFNet-XS, 16 M parameters."""
    return _isotropic("gfnet_xs", pretrained, kwargs, embed_dim=384, depth=12)


@register_model
def gfnet_s(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """GFNet-S, 25 M parameters."""
    return _isotropic("gfnet_s", pretrained, kwargs, embed_dim=384, depth=19, drop_path_rate=0.15)


@register_model
def gfnet_b(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """GFNet-B, 43 M parameters."""
    return _isotropic("gfnet_b", pretrained, kwargs, embed_dim=512, depth=19, drop_path_rate=0.25)


@register_model
def gfnet_h_ti(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """GFNet-H-Ti, a pyramid of 15 M parameters."""
    return _pyramid("gfnet_h_ti", pretrained, kwargs, drop_path_rate=0.1)


@register_model
def gfnet_h_s(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """GFNet-H-S, a pyramid of 32 M parameters."""
    variant = {"embed_dims": (96, 192, 384, 768), "layer_scale": 1e-5, "drop_path_rate": 0.2}
    return _pyramid("gfnet_h_s", pretrained, kwargs, **variant)


@register_model
def gfnet_h_b(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """GFNet-H-B, a pyramid of 54 M parameters."""
    variant = {
        "embed_dims": (96, 192, 384, 768),
        "depths": (3, 3, 27, 3),
        "layer_scale": 1e-6,
        "drop_path_rate": 0.4,
    }
    return _pyramid("gfnet_h_b", pretrained, kwargs, **variant)


@register_model
def gfnet_h_n(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """GFNet-H-N, ours: a pyramid of 1.6 M parameters for small data and slow machines."""
    return _pyramid(
        "gfnet_h_n", pretrained, kwargs, embed_dims=(32, 64, 128, 256), depths=(1, 1, 2, 1), layer_scale=None
    )


@register_model
def test_gfnet(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """A tiny GFNet for tests: 32x32 images, a 4x4 grid."""
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3}
    return _isotropic("test_gfnet", pretrained, kwargs, **tiny)


@register_model
def test_gfnet_h(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """A tiny GFNet pyramid for tests: 32x32 images, grids of 8, 4, 2 and 1."""
    tiny = {"img_size": 32, "embed_dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}
    return _pyramid("test_gfnet_h", pretrained, kwargs, **tiny)
