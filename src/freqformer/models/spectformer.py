"""SpectFormer and FreqFormer: spectral blocks first, attention deeper, on one grid and as a pyramid.

Patro, Namboodiri, Agneeswaran, "SpectFormer: Frequency and Attention is what you need in a Vision
Transformer", 2023. FreqFormer's paper has the same networks and the same tables; both names exist.
"""

from collections.abc import Sequence
from typing import Any

from timm.layers import to_2tuple
from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..layers import Attention, Block, ClassBlock, ConvStem, GlobalFilter, Shrink, SpatialMlp
from .backbone import Grid, SpectralNet, init_linear, make_stages
from .build import Published, build, default_cfg
from .isotropic import build_isotropic

_PAGE = "https://github.com/badripatro/SpectFormers"
_FAMILIES = ("spectformer", "freqformer")

_PUBLISHED = {
    "ti": Published("9M", "1.8G", 76.9, 93.4),
    "xs": Published("22M", "4.0G", 80.2, 94.7),
    "s": Published("32M", "6.6G", 81.7, 95.6),
    "b": Published("57M", "11.5G", 82.1, 95.7),
    "h_s": Published("22.2M", "3.9G", 84.3, 96.9),
    "h_b": Published("33.1M", "6.3G", 85.0, 97.1),
    "h_l": Published("54.7M", "12.7G", 85.7, 97.3),
}
PUBLISHED = {f"{family}_{size}": published for family in _FAMILIES for size, published in _PUBLISHED.items()}

_SIZES: dict[str, dict[str, Any]] = {
    "ti": {"embed_dim": 256, "depth": 12, "num_heads": 4},
    "xs": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "s": {"embed_dim": 384, "depth": 19, "num_heads": 6, "drop_path_rate": 0.15},
    "b": {"embed_dim": 512, "depth": 19, "num_heads": 8, "drop_path_rate": 0.25},
}
# For small images: an 8x8 grid, about 1.5 M parameters.
_NANO: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 160, "depth": 6, "num_heads": 4}
_TINY: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 3,
    "spectral_depth": 2,
    "num_heads": 2,
}

_PYRAMIDS: dict[str, dict[str, Any]] = {
    "h_s": {
        "stem_dim": 32,
        "embed_dims": (64, 128, 320, 448),
        "num_heads": (2, 4, 10, 14),
        "depths": (3, 4, 6, 3),
        "drop_path_rate": 0.1,
    },
    "h_b": {
        "stem_dim": 64,
        "embed_dims": (64, 128, 320, 512),
        "num_heads": (2, 4, 10, 16),
        "depths": (3, 4, 12, 3),
        "drop_path_rate": 0.1,
    },
    "h_l": {
        "stem_dim": 64,
        "embed_dims": (96, 192, 384, 512),
        "num_heads": (3, 6, 12, 16),
        "depths": (3, 6, 18, 3),
        "drop_path_rate": 0.3,
    },
}
_TINY_PYRAMID: dict[str, Any] = {
    "img_size": 32,
    "stem_dim": 8,
    "embed_dims": (8, 16, 24, 32),
    "num_heads": (1, 2, 3, 4),
    "depths": (1, 1, 2, 1),
}

_NANO_PYRAMID: dict[str, Any] = {
    "stem_dim": 16,
    "embed_dims": (32, 64, 128, 256),
    "num_heads": (1, 2, 4, 8),
    "mlp_ratios": (4, 4, 4, 4),
    "depths": (1, 1, 2, 1),
}


def _cfg(size: str) -> dict[str, Any]:
    if size in _PYRAMIDS:
        return default_cfg(stride=32, origin_url=_PAGE, first_conv="stem.conv.0")
    return default_cfg(origin_url=_PAGE)


_tiny_cfg: dict[str, Any] = {"img_size": 32, "crop_pct": 1.0, "num_classes": 10}

default_cfgs = generate_default_cfgs(
    {
        **{f"{family}_{size}": _cfg(size) for family in _FAMILIES for size in (*_SIZES, *_PYRAMIDS)},
        "freqformer_n": default_cfg(img_size=32, stride=4, crop_pct=1.0),
        "freqformer_h_n": default_cfg(stride=32, first_conv="stem.conv.0"),
        **{f"test_{family}": default_cfg(**_tiny_cfg, stride=8) for family in _FAMILIES},
        **{f"test_{family}_h": default_cfg(**_tiny_cfg, stride=32, first_conv="stem.conv.0") for family in _FAMILIES},
    }
)


def pyramid(
    img_size: int | tuple[int, int] = 224,
    in_chans: int = 3,
    num_classes: int = 1000,
    stem_dim: int = 32,
    embed_dims: Sequence[int] = (64, 128, 320, 448),
    num_heads: Sequence[int] = (2, 4, 10, 14),
    mlp_ratios: Sequence[float] = (8, 8, 4, 4),
    depths: Sequence[int] = (3, 4, 6, 3),
    spectral_stages: int = 2,
    token_label: bool = True,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    resample: str = "stretch",
    out_norms: bool = False,
    global_pool: str = "avg",
) -> SpectralNet:
    """SpectFormer's pyramid: spectral stages first, attention in the later ones, a class block at the end.

    Args:
        img_size: native image size in pixels, one number or (H, W); it fixes the native grids.
        in_chans: image channels.
        num_classes: classes; 0 leaves out the classifier.
        stem_dim: channels inside the stem.
        embed_dims: channels of each stage.
        num_heads: attention heads of each stage; the last is the class block's too.
        mlp_ratios: hidden over input channels of each stage's MLPs.
        depths: blocks of each stage.
        spectral_stages: how many of the first stages are spectral.
        token_label: whether a second classifier scores every token, as the published models have.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        resample: how filters are fitted to other grids, ``"stretch"`` or ``"crop-pad"``.
        out_norms: whether features have norms of their own.
        global_pool: ``"avg"``, the class block, whose token starts as the mean over the tokens, or ``""`` for none.

    Returns:
        The network.
    """
    size = to_2tuple(img_size)
    stem = ConvStem(in_chans, stem_dim, embed_dims[0])
    last = len(depths) - 1

    def block(stage: int, grid: Grid, drop_path: float) -> Block:
        dim = embed_dims[stage]
        spectral = stage < spectral_stages
        mixer = GlobalFilter(dim, grid, resample) if spectral else Attention(dim, num_heads[stage])
        mlp = SpatialMlp(dim, int(dim * mlp_ratios[stage]))
        return Block(dim, mixer, mlp, mixer_residual=True, drop_path=drop_path)

    def downsample(stage: int) -> Shrink:
        dim = embed_dims[stage]
        return Shrink(embed_dims[stage - 1], dim, kernel_size=3, stride=2, padding=1, post_norm=nn.LayerNorm(dim))

    def norm(stage: int) -> nn.Module | None:
        return nn.LayerNorm(embed_dims[stage], eps=1e-6) if stage < last else None

    return SpectralNet(
        stem,
        make_stages(stem, size, depths, drop_path_rate, block, downsample, norm),
        embed_dims,
        img_size=size,
        num_classes=num_classes,
        norm_first=False,
        pool=ClassBlock(embed_dims[-1], num_heads[-1], mlp_ratios[-1]),
        token_label=token_label,
        drop_rate=drop_rate,
        out_norms=out_norms,
        init=_init,
        global_pool=global_pool,
    )


def _init(module: nn.Module) -> None:
    init_linear(module)
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _spectformer(name: str, pretrained: bool, kwargs: dict[str, Any], variant: dict[str, Any]) -> SpectralNet:
    """The first ``spectral_depth`` blocks spectral (4 unless said otherwise), the rest attention."""
    return build_isotropic(name, pretrained, **{"spectral_depth": 4, **variant, **kwargs})


def _pyramid(name: str, pretrained: bool, kwargs: dict[str, Any], variant: dict[str, Any]) -> SpectralNet:
    return build(pyramid, name, pretrained, (0, 1, 2, 3), **{**variant, **kwargs})


@register_model
def spectformer_ti(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """SpectFormer-T, 9 M parameters."""
    return _spectformer("spectformer_ti", pretrained, kwargs, _SIZES["ti"])


@register_model
def spectformer_xs(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """SpectFormer-XS, 20 M parameters."""
    return _spectformer("spectformer_xs", pretrained, kwargs, _SIZES["xs"])


@register_model
def spectformer_s(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """SpectFormer-S, 32 M parameters."""
    return _spectformer("spectformer_s", pretrained, kwargs, _SIZES["s"])


@register_model
def spectformer_b(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """SpectFormer-B, 57 M parameters."""
    return _spectformer("spectformer_b", pretrained, kwargs, _SIZES["b"])


@register_model
def freqformer_ti(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """FreqFormer-T, 9 M parameters."""
    return _spectformer("freqformer_ti", pretrained, kwargs, _SIZES["ti"])


@register_model
def freqformer_xs(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """FreqFormer-XS, 20 M parameters."""
    return _spectformer("freqformer_xs", pretrained, kwargs, _SIZES["xs"])


@register_model
def freqformer_s(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """FreqFormer-S, 32 M parameters."""
    return _spectformer("freqformer_s", pretrained, kwargs, _SIZES["s"])


@register_model
def freqformer_b(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """FreqFormer-B, 57 M parameters."""
    return _spectformer("freqformer_b", pretrained, kwargs, _SIZES["b"])


@register_model
def spectformer_h_s(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """SpectFormer-H-S, a pyramid of 22 M parameters."""
    return _pyramid("spectformer_h_s", pretrained, kwargs, _PYRAMIDS["h_s"])


@register_model
def spectformer_h_b(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """SpectFormer-H-B, a pyramid of 33 M parameters."""
    return _pyramid("spectformer_h_b", pretrained, kwargs, _PYRAMIDS["h_b"])


@register_model
def spectformer_h_l(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """SpectFormer-H-L, a pyramid of 55 M parameters."""
    return _pyramid("spectformer_h_l", pretrained, kwargs, _PYRAMIDS["h_l"])


@register_model
def freqformer_h_s(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """FreqFormer-H-S, a pyramid of 22 M parameters."""
    return _pyramid("freqformer_h_s", pretrained, kwargs, _PYRAMIDS["h_s"])


@register_model
def freqformer_h_b(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """FreqFormer-H-B, a pyramid of 33 M parameters."""
    return _pyramid("freqformer_h_b", pretrained, kwargs, _PYRAMIDS["h_b"])


@register_model
def freqformer_h_l(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """FreqFormer-H-L, a pyramid of 55 M parameters."""
    return _pyramid("freqformer_h_l", pretrained, kwargs, _PYRAMIDS["h_l"])


@register_model
def freqformer_n(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """Our own FreqFormer for small images: 32x32 pixels, patches of 4, 1.5 M parameters."""
    return _spectformer("freqformer_n", pretrained, kwargs, _NANO)


@register_model
def freqformer_h_n(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """Our own FreqFormer-H for small data and slow machines: a pyramid of 3.1 M parameters."""
    return _pyramid("freqformer_h_n", pretrained, kwargs, _NANO_PYRAMID)


@register_model
def test_spectformer(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """A tiny SpectFormer for tests: 32x32 images, a 4x4 grid."""
    return _spectformer("test_spectformer", pretrained, kwargs, _TINY)


@register_model
def test_freqformer(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """A tiny FreqFormer for tests: 32x32 images, a 4x4 grid."""
    return _spectformer("test_freqformer", pretrained, kwargs, _TINY)


@register_model
def test_spectformer_h(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """A tiny SpectFormer pyramid for tests: 32x32 images, grids of 8, 4, 2 and 1."""
    return _pyramid("test_spectformer_h", pretrained, kwargs, _TINY_PYRAMID)


@register_model
def test_freqformer_h(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """A tiny FreqFormer pyramid for tests: 32x32 images, grids of 8, 4, 2 and 1."""
    return _pyramid("test_freqformer_h", pretrained, kwargs, _TINY_PYRAMID)
