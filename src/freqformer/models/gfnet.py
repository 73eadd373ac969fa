"""GFNet (Rao et al., "Global Filter Networks for Image Classification", NeurIPS 2021)."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from .backbone import SpectralNet, default_cfg

# Names in raoyongming/GFNet's isotropic checkpoints, and ours; SpectFormer's differ by its attention.
OFFICIAL_KEYS = (
    (r"patch_embed\.proj\.", "stem.proj."),
    (r"blocks\.(\d+)\.(?:filter|attn)\.", r"stages.0.blocks.\1.token_mixer."),
    (r"blocks\.(\d+)\.(norm1|norm2|mlp)\.", r"stages.0.blocks.\1.\2."),
)

default_cfgs = generate_default_cfgs(
    {
        "gfnet_ti": default_cfg(),
        "gfnet_xs": default_cfg(),
        "gfnet_s": default_cfg(),
        "gfnet_b": default_cfg(),
        "test_gfnet": default_cfg(img_size=32, crop_pct=1.0, num_classes=10),
    }
)


def _gfnet(name: str, pretrained: bool, kwargs: dict[str, Any], **variant: Any) -> SpectralNet:
    """All blocks spectral."""
    arguments = {"spectral_depth": variant["depth"], **variant, **kwargs}
    return build_model_with_cfg(SpectralNet, name, pretrained, **arguments)


@register_model
def gfnet_ti(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """GFNet-Ti, 7.5 M parameters."""
    return _gfnet("gfnet_ti", pretrained, kwargs, embed_dim=256, depth=12)


@register_model
def gfnet_xs(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """GFNet-XS, 16 M parameters."""
    return _gfnet("gfnet_xs", pretrained, kwargs, embed_dim=384, depth=12)


@register_model
def gfnet_s(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """GFNet-S, 25 M parameters."""
    return _gfnet("gfnet_s", pretrained, kwargs, embed_dim=384, depth=19, drop_path_rate=0.15)


@register_model
def gfnet_b(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """GFNet-B, 43 M parameters."""
    return _gfnet("gfnet_b", pretrained, kwargs, embed_dim=512, depth=19, drop_path_rate=0.25)


@register_model
def test_gfnet(pretrained: bool = False, **kwargs: Any) -> SpectralNet:
    """A tiny GFNet for tests: 32x32 images, a 4x4 grid."""
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2}
    return _gfnet("test_gfnet", pretrained, kwargs, **tiny)
