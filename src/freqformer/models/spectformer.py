"""SpectFormer and FreqFormer: spectral blocks first, attention deeper.

Patro, Namboodiri, Agneeswaran, "SpectFormer: Frequency and Attention is what you need in a Vision
Transformer", 2023. FreqFormer's paper has the same network and the same tables; both names exist.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from .backbone import SpectralNet, default_cfg
from .gfnet import OFFICIAL_KEYS as OFFICIAL_KEYS

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

default_cfgs = generate_default_cfgs(
    {
        **{
            f"{family}_{size}": default_cfg()
            for family in ("spectformer", "freqformer")
            for size in ("ti", "xs", "s", "b")
        },
        "freqformer_n": default_cfg(img_size=32, crop_pct=1.0),
        "test_spectformer": default_cfg(img_size=32, crop_pct=1.0, num_classes=10),
        "test_freqformer": default_cfg(img_size=32, crop_pct=1.0, num_classes=10),
    }
)


def _spectformer(name: str, pretrained: bool, kwargs: dict[str, Any], variant: dict[str, Any]) -> SpectralNet:
    """The first ``spectral_depth`` blocks spectral (4 unless said otherwise), the rest attention."""
    return build_model_with_cfg(SpectralNet, name, pretrained, **{"spectral_depth": 4, **variant, **kwargs})


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
def freqformer_n(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """Our own FreqFormer for small images: 32x32 pixels, patches of 4, 1.5 M parameters."""
    return _spectformer("freqformer_n", pretrained, kwargs, _NANO)


@register_model
def test_spectformer(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """A tiny SpectFormer for tests: 32x32 images, a 4x4 grid."""
    return _spectformer("test_spectformer", pretrained, kwargs, _TINY)


@register_model
def test_freqformer(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """A tiny FreqFormer for tests: 32x32 images, a 4x4 grid."""
    return _spectformer("test_freqformer", pretrained, kwargs, _TINY)
