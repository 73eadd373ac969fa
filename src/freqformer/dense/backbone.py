"""A pyramid of features from any model: the stages of a pyramid, or ViTDet's simple pyramid on one grid."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import LayerNorm2d, to_2tuple
from torch import Tensor, nn

from ..checkpoints import read_weights, weights_path
from ..errors import FreqFormerError
from ..factory import create_model
from ..models import load_checkpoint, model_names, spelling

STRIDES = (4, 8, 16, 32)
"""Image pixels a token, of each level of a pyramid."""


class Backbone(nn.Module):
    """Images to a list of features, fine to coarse; a model of its own may follow as ``pyramid``.

    Args:
        network: from images (B, 3, H, W) to a list of features.
        layout: of the features, ``"NCHW"`` or ``"NHWC"``.
        taken: which of them are the levels.
        channels: of each level.
        strides: image pixels a token, of each level.
        cfg: the network's ``pretrained_cfg``.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        layout: str,
        taken: Sequence[int],
        channels: Sequence[int],
        strides: Sequence[int],
        cfg: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.network = network
        self.layout = layout
        self.taken, self.channels, self.strides = tuple(taken), tuple(channels), tuple(strides)
        self.cfg = dict(cfg)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W), normalised, to features (B, C, H', W') of each level."""
        features = self.network(x)
        levels = [features[index] for index in self.taken]
        return [level.permute(0, 3, 1, 2) for level in levels] if self.layout == "NHWC" else levels

    @property
    def is_isotropic(self) -> bool:
        """Whether there is one grid alone."""
        return len(self.strides) == 1

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep the activations of blocks at their borders alone."""
        whole: Any = getattr(self.network, "model", self.network)
        if not hasattr(whole, "set_grad_checkpointing"):
            raise FreqFormerError("this backbone has no gradient checkpointing: leave out --grad-checkpointing")
        whole.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone, beside norms and biases."""
        for name, module in (("network.model.", getattr(self.network, "model", None)), ("network.", self.network)):
            if hasattr(module, "no_weight_decay"):
                spared: Callable[[], set[str]] = module.no_weight_decay  # type: ignore[assignment,union-attr]
                return {name + key for key in spared()}
        return set()


class SimplePyramid(nn.Module):
    """Levels of several strides from one grid (Li et al., "Exploring Plain Vision Transformer Backbones for Object
    Detection", ECCV 2022): transposed convolutions for finer ones, a pooling for coarser ones.

    Args:
        dim: channels of the grid.
        stride: image pixels a token, a power of two.
        out_channels: of each level.
        strides: of the levels.

    Raises:
        FreqFormerError: a stride that is no power of two.
    """

    def __init__(self, dim: int, stride: int, out_channels: int, strides: Sequence[int] = STRIDES) -> None:
        super().__init__()
        if stride & (stride - 1):
            raise FreqFormerError(f"a pyramid needs patches of 4, 8, 16 or 32 pixels, the backbone has {stride}")
        self.levels = nn.ModuleList(_level(dim, stride, out_channels, wanted) for wanted in strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        """A grid (B, dim, H, W) to features (B, out_channels, H', W') of each level."""
        return [level(x) for level in self.levels]


def _level(dim: int, stride: int, out_channels: int, wanted: int) -> nn.Sequential:
    steps: list[nn.Module] = []
    while stride > wanted:
        if steps:
            steps += [LayerNorm2d(dim), nn.GELU()]
        steps.append(nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2))
        dim, stride = dim // 2, stride // 2
    if stride < wanted:
        factor = wanted // stride
        # Grids of odd sizes, too, end where those of the finer levels do.
        steps.append(nn.MaxPool2d(factor, factor, ceil_mode=True))
    steps += [nn.Conv2d(dim, out_channels, 1, bias=False), LayerNorm2d(out_channels)]
    steps += [nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), LayerNorm2d(out_channels)]
    return nn.Sequential(*steps)


def make_backbone(
    arch: str,
    *,
    strides: Sequence[int] = STRIDES,
    native_size: int | tuple[int, int] | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    **arguments: Any,
) -> Backbone:
    """Make a backbone of a model of this package or of timm.

    Args:
        arch: its name.
        strides: the levels that are used; an isotropic model has one of its own, and gives that.
        native_size: image size in pixels, or (H, W), that filters and position embeddings are made for; by default
            the model's own. Other sizes are resampled in the forward.
        weights: a classification checkpoint to start from, filters resampled to the native size.
        pretrained: start from the weights that timm publishes.
        **arguments: the model's own keywords.

    Returns:
        The backbone, in training mode.

    Raises:
        FreqFormerError: an unknown name, a keyword that it does not take, a model without such features, or weights
            that do not fit.
    """
    ours = spelling(arch) in model_names()
    size = {} if native_size is None else {"img_size": to_2tuple(native_size)}
    given = {"features_only": True, "pretrained": pretrained, **size, **arguments}
    make = _ours if ours else _timms
    if weights is not None and not ours:
        # timm's own way: it fits names, position embeddings and first convolutions.
        given |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights_path(weights))}}
    network = make(arch, **given)
    reductions = network.feature_info.reduction()
    if len(set(reductions)) == 1:
        network, taken = make(arch, **{**given, "out_indices": (-1,)}), [0]
    else:
        taken = [index for index, reduction in enumerate(reductions) if reduction in strides]
        if [reductions[index] for index in taken] != list(strides):
            raise FreqFormerError(
                f"{arch} has features of strides {', '.join(map(str, reductions))}, and {', '.join(map(str, strides))} "
                "are needed: choose another backbone"
            )
        if ours and len(taken) < len(reductions):
            # Norms of features that nothing uses would have no gradient.
            network, taken = make(arch, **{**given, "out_indices": tuple(taken)}), list(range(len(taken)))
    if weights is not None:
        load_checkpoint(network, weights) if ours else _require_all(network, weights, arch)
    info = network.feature_info
    # timm's extractors say how their features lie; where they do not they are as convolutions have them.
    layout = getattr(getattr(network, "output_fmt", None), "value", "NCHW")
    whole: Any = getattr(network, "model", network)
    published: Any = timm.get_pretrained_cfg(arch)
    cfg = getattr(whole, "pretrained_cfg", None) or published.to_dict()
    return Backbone(
        network,
        layout=layout,
        taken=taken,
        channels=[info.channels()[index] for index in taken],
        strides=[info.reduction()[index] for index in taken],
        cfg={key: list(cfg[key]) for key in ("mean", "std")},
    )


def _ours(arch: str, **arguments: Any) -> Any:
    return create_model(arch, out_norms=True, **arguments)


def _timms(arch: str, pretrained: bool, pretrained_cfg_overlay: Any = None, **arguments: Any) -> Any:
    """A model of timm that takes images of any size, by whichever keyword its family has for that."""
    if not timm.is_model(arch):
        raise FreqFormerError(f"there is no backbone {arch!r}: `freqformer models` lists ours, timm has others")
    refusals = []
    for keyword, value in (("", None), ("dynamic_img_size", True), ("strict_img_size", False)):
        given = {**({keyword: value} if keyword else {}), **arguments}
        try:
            network = timm.create_model(arch, **given)
            with torch.no_grad():
                # One of them may be the very size that it is made for.
                for size in ((64, 96), (96, 64)):
                    network.eval()(torch.zeros(1, 3, *size))
            break
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            # That a family has another keyword for it says nothing to the user.
            if not keyword or keyword not in str(error):
                refusals.append(_line(error))
    else:
        if "'img_size'" in refusals[-1]:
            raise FreqFormerError(f"{arch} keeps nothing for a size of images: leave out --native-size")
        raise FreqFormerError(f"{arch} makes no backbone for images of any size: {refusals[-1]}")
    if pretrained:
        try:
            network = timm.create_model(arch, pretrained=True, pretrained_cfg_overlay=pretrained_cfg_overlay, **given)
        except Exception as error:  # the hub's client, torch and safetensors have errors of their own
            source = (pretrained_cfg_overlay or {}).get("file", "timm's published weights")
            raise FreqFormerError(f"cannot fill {arch} from {source}: {_line(error)}") from error
    return network.train()


def _line(error: Exception) -> str:
    # torch begins with a line that names no tensor.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2])


def _require_all(network: nn.Module, weights: str | Path, arch: str) -> None:
    """Refuse a file that lacks a backbone's tensors, over which timm passes without a word."""
    # timm's extractors of pyramids write stages_0 for stages.0.
    given = {key.replace(".", "_") for key in read_weights(weights)}
    lacking = [key for key in network.state_dict() if key.removeprefix("model.").replace(".", "_") not in given]
    if lacking:
        raise FreqFormerError(f"{weights} does not fit {arch}: it has no {lacking[0]}")
