"""Semantic segmentation: a decoder of segmentation_models_pytorch on the features of any backbone."""

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.encoders import encoders
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn

from ..errors import FreqFormerError
from .backbone import STRIDES, Backbone, SimplePyramid, make_backbone

DECODERS = ("fpn", "unet", "unetplusplus", "manet", "upernet", "segformer")
"""Of segmentation_models_pytorch's, those that read every level of any backbone and leave its strides alone."""
_ENTRY = "freqformer"


class Encoder(nn.Module, EncoderMixin):
    """A backbone as segmentation_models_pytorch's decoders read it: the image, and features of strides 2 to 32.

    Backbones of patches of 4 pixels have nothing at stride 2: there stands the image, averaged.

    Args:
        body: the backbone.
        channels: of the levels that ViTDet's simple pyramid makes of a backbone with one grid.
        depth: how many levels the decoder reads.
    """

    def __init__(self, body: Backbone, channels: int, depth: int) -> None:
        super().__init__()
        self.body = body
        self.neck = SimplePyramid(body.channels[0], body.strides[0], channels) if body.is_isotropic else None
        levels = [channels] * len(STRIDES) if body.is_isotropic else list(body.channels)
        # The names that EncoderMixin reads.
        self._depth, self._in_channels, self._output_stride = depth, 3, STRIDES[-1]
        self._out_channels = [3, 3, *levels]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W), of sides that 32 divides, to features by stride."""
        levels = self.body(x)
        if self.neck is not None:
            levels = self.neck(levels[0])
        return [x, F.avg_pool2d(x, 2), *levels][: self._depth + 1]


class Segmenter(nn.Module):
    """Gives every pixel of an image a class.

    Args:
        net: segmentation_models_pytorch's model.
        arguments: the keywords of `create_segmenter` that make its like.
        label_names: names of the classes.
        cfg: mean and standard deviation of the channels of images in 0..1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, arguments: dict[str, Any], label_names: Sequence[str], cfg: dict[str, list[float]]
    ) -> None:
        super().__init__()
        self.net = net
        self.arguments = arguments
        self.label_names = list(label_names)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(cfg[name])[:, None, None], persistent=False)

    @property
    def backbone(self) -> Backbone:
        """What makes the features."""
        encoder: Any = self.net.encoder
        return encoder.body

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) of any size, uint8 or floating point in 0..1, to logits (B, classes, H, W)."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        height, width = images.shape[-2:]
        below, right = -height % STRIDES[-1], -width % STRIDES[-1]
        return self.net(F.pad((pixels - self.mean) / self.std, (0, right, 0, below)))[..., :height, :width]

    @torch.no_grad()
    def sliding(self, image: Tensor, window: tuple[int, int], stride: tuple[int, int] | None = None) -> Tensor:
        """The logits of one image as the mean over windows that cover it.

        Args:
            image: (3, H, W).
            window: height and width of the windows; on an image that is smaller there is one, cut to it.
            stride: from window to window, in pixels; by default two thirds of a window.

        Returns:
            (classes, H, W).

        Raises:
            FreqFormerError: a stride that leaves pixels between the windows.
        """
        height, width = image.shape[-2:]
        sides = min(window[0], height), min(window[1], width)
        steps = stride or (max(1, window[0] * 2 // 3), max(1, window[1] * 2 // 3))
        if not (1 <= steps[0] <= window[0] and 1 <= steps[1] <= window[1]):
            raise FreqFormerError(
                f"windows of {window} at strides of {steps} pixels leave gaps: choose smaller strides"
            )
        total = torch.zeros(len(self.label_names), height, width, device=image.device)
        count = torch.zeros(height, width, device=image.device)
        for top in _starts(height, sides[0], steps[0]):
            for left in _starts(width, sides[1], steps[1]):
                place = (slice(top, top + sides[0]), slice(left, left + sides[1]))
                total[(slice(None), *place)] += self(image[(slice(None), *place)][None])[0].float()
                count[place] += 1
        return total / count

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep the activations of the backbone's blocks at their borders alone."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone, beside norms and biases."""
        return {f"net.encoder.body.{name}" for name in self.backbone.no_weight_decay()}


def create_segmenter(
    arch: str,
    label_names: Sequence[str],
    *,
    decoder: str = "fpn",
    native_size: int | tuple[int, int] | None = None,
    backbone_weights: str | Path | None = None,
    pretrained: bool = False,
    model_args: dict[str, Any] | None = None,
    decoder_args: dict[str, Any] | None = None,
    pyramid_channels: int = 256,
) -> Segmenter:
    """Make a segmenter: a decoder of segmentation_models_pytorch on a backbone of this package or of timm.

    Args:
        arch: the backbone's name.
        label_names: names of the classes.
        decoder: one of ``DECODERS``; ``"fpn"`` is Semantic FPN (Kirillov et al., "Panoptic Feature Pyramid Networks",
            CVPR 2019).
        native_size: see `make_backbone`.
        pretrained: see `make_backbone`.
        backbone_weights: a classification checkpoint to start from.
        model_args: the backbone's own keywords.
        decoder_args: the decoder's own keywords, which begin with ``decoder_``.
        pyramid_channels: of the levels that ViTDet's simple pyramid makes of a backbone with one grid.

    Returns:
        The segmenter, in training mode.

    Raises:
        FreqFormerError: an unknown decoder, keywords that it does not take, or a backbone or weights that do not fit.
    """
    if decoder not in DECODERS:
        raise FreqFormerError(f"there is no decoder {decoder!r}: choose one of {', '.join(DECODERS)}")
    # The library passes over keywords that it does not know, and others of its own change what the model returns.
    takes = inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[decoder]).parameters
    known = [name for name in takes if name.startswith("decoder_")]
    for name in decoder_args or {}:
        if name not in known:
            raise FreqFormerError(f"the decoder {decoder} has no keyword {name!r}: it takes {', '.join(known)}")
    body = make_backbone(
        arch, native_size=native_size, weights=backbone_weights, pretrained=pretrained, **(model_args or {})
    )

    def make_encoder(depth: int, output_stride: int) -> Encoder:
        return Encoder(body, pyramid_channels, depth)

    # The library makes encoders by name alone.
    encoders[_ENTRY] = {"encoder": make_encoder, "params": {}, "pretrained_settings": {}}
    try:
        net = smp.create_model(decoder, _ENTRY, encoder_weights=None, classes=len(label_names), **(decoder_args or {}))
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FreqFormerError(f"cannot make the decoder {decoder}: {reason}") from error
    finally:
        del encoders[_ENTRY]
    arguments = {
        "arch": arch,
        "decoder": decoder,
        "native_size": native_size if isinstance(native_size, int | None) else list(native_size),
        "model_args": model_args or {},
        "decoder_args": decoder_args or {},
        "pyramid_channels": pyramid_channels,
    }
    return Segmenter(net, arguments, label_names, body.cfg)


def _starts(length: int, window: int, step: int) -> list[int]:
    """Where windows begin, the last of them at the border."""
    count = math.ceil((length - window) / step) + 1
    return [min(index * step, length - window) for index in range(count)]
