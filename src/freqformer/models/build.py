"""From a family's parts to a registered model: timm's builder, and the authors' weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

from timm.models import build_model_with_cfg
from timm.models._builder import _resolve_pretrained_source
from timm.models._hub import download_cached_file
from torch import nn

from ..errors import FreqFormerError
from .backbone import SpectralNet
from .loading import load_checkpoint


class Published(NamedTuple):
    """What a paper or its repository prints of a model, for 224x224 images on ImageNet-1K."""

    parameters: str
    flops: str
    top1: float
    top5: float


def default_cfg(img_size: int = 224, stride: int = 16, crop_pct: float = 0.875, **changes: Any) -> dict[str, Any]:
    """timm's description of an entry point: native input, last grid, preprocessing and the ends' module names."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, img_size, img_size),
        "pool_size": (img_size // stride, img_size // stride),
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.proj",
        "classifier": "head",
        **changes,
    }


def build(
    network: Callable[..., SpectralNet],
    name: str,
    pretrained: bool,
    features: int | tuple[int, ...],
    /,
    **arguments: Any,
) -> SpectralNet:
    """Build a registered model as timm does, with the authors' weights when asked for.

    Args:
        network: the family's function from plain keywords to a network.
        name: the entry point's name.
        pretrained: load the file that ``pretrained_cfg`` names.
        features: which ones ``features_only`` returns by default.
        **arguments: keywords of the network and of timm's builder.

    Returns:
        The model (timm's feature extractor around it with ``features_only``).

    Raises:
        FreqFormerError: no link to the weights is published, or they do not fit.
    """
    extractor = {"out_indices": features, "feature_cls": "getter"}
    model = build_model_with_cfg(network, name, False, feature_cfg=extractor, **arguments)
    net = model if isinstance(model, SpectralNet) else model.model
    if isinstance(net.token_head, nn.Module):
        net.pretrained_cfg = {**net.pretrained_cfg, "classifier": ("head", "token_head")}
    if pretrained:
        load_checkpoint(model, _pretrained_source(name, net.pretrained_cfg))
    return model


def _pretrained_source(name: str, cfg: dict[str, Any]) -> Any:
    """A path or a state dict with the weights that a ``pretrained_cfg`` names."""
    kind, location = _resolve_pretrained_source(cfg)
    page = cfg.get("origin_url") or "the authors' page"
    own_file = f'download the file from {page} and pass freqformer.create_model("{name}", checkpoint=FILE)'
    if not location:
        raise FreqFormerError(f"no stable link to weights of {name} is published: {own_file}")
    if kind == "url":
        try:
            return download_cached_file(location, progress=True)
        except OSError as error:
            url = location[0] if isinstance(location, tuple) else location
            raise FreqFormerError(f"cannot fetch {url} ({error}): {own_file}") from error
    if kind == "hf-hub":
        return f"hf-hub:{location}"
    return location
