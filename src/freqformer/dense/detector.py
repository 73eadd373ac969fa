"""Detectors: torchvision's RetinaNet, Faster R-CNN and Mask R-CNN over a feature pyramid of any backbone."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import initLevelMapper
from torchvision.transforms.v2 import functional as F

from ..data import shortest_edge
from ..errors import FreqFormerError
from .backbone import STRIDES, Backbone, SimplePyramid, make_backbone

DETECTORS = ("retinanet", "fasterrcnn", "maskrcnn")
# Detectron's box size that Mask R-CNN's levels are chosen by, at anchors of 32 to 512.
_CANONICAL = 224 / 32
# Masks that are enlarged at once.
_PASTED = 8
Detections = list[dict[str, Tensor]]


class Pyramid(nn.Module):
    """A backbone and its neck: images to the levels that detectors read.

    Args:
        body: the backbone.
        channels: of each level.
        norm: makes the neck's norms, or None.
        strides: of the levels that come from the backbone.
        extra: makes what makes coarser levels, of the channels of the last features.
    """

    def __init__(
        self,
        body: Backbone,
        channels: int,
        norm: Callable[[int], nn.Module] | None,
        strides: Sequence[int],
        extra: Callable[[int], Any],
    ) -> None:
        super().__init__()
        self.body = body
        self.out_channels = channels
        self.extra: Any = None
        if body.is_isotropic:
            # The simple pyramid has channels of the neck already (ViTDet, section 3).
            self.neck: nn.Module = SimplePyramid(body.channels[0], body.strides[0], channels, strides)
            self.extra = extra(channels)
        else:
            self.neck = FeaturePyramidNetwork(list(body.channels), channels, extra(body.channels[-1]), norm)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) to levels by name, fine to coarse."""
        levels = self.body(images)
        if self.extra is None:
            return self.neck(OrderedDict((str(index), level) for index, level in enumerate(levels)))
        levels = self.neck(levels[0])
        names = [str(index) for index in range(len(levels))]
        levels, names = self.extra(list(levels), levels, names)
        return OrderedDict(zip(names, levels, strict=True))


class Preparation(GeneralizedRCNNTransform):
    """torchvision's preparation of images; resizing antialiases, and in training images come as they are to be."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, Any]:
        """An image (3, H, W) in the size that detection works at."""
        if self.training:
            return image, target
        size = shortest_edge((image.shape[-2], image.shape[-1]), self.min_size[-1], self.max_size)
        return F.resize(image, list(size), antialias=True), target

    def postprocess(self, result: Detections, image_shapes: Any, original_image_sizes: Any) -> Detections:
        """Detections in the images' own pixels; masks are bool, since as shares a hundred of a photo fill gigabytes."""
        if self.training:
            return result
        masks = [found.pop("masks", None) for found in result]
        result = super().postprocess(result, image_shapes, original_image_sizes)
        for found, small, size in zip(result, masks, original_image_sizes, strict=True):
            if small is not None:
                pasted = [
                    paste_masks_in_image(small[i : i + _PASTED], found["boxes"][i : i + _PASTED], size) > 0.5
                    for i in range(0, max(1, len(small)), _PASTED)
                ]
                found["masks"] = torch.cat(pasted)
        return result


class Detector(nn.Module):
    """Finds objects of known classes in images of any and different sizes.

    Args:
        net: torchvision's detector.
        arguments: the keywords of `create_detector` that make its like.
        label_names: names of the classes.
    """

    def __init__(self, net: Any, arguments: dict[str, Any], label_names: Sequence[str]) -> None:
        super().__init__()
        self.net = net
        self.arguments = arguments
        self.label_names = list(label_names)
        self.kind: str = arguments["detector"]
        # In torchvision's two-stage detectors class 0 is the background.
        self._first = 0 if self.kind == "retinanet" else 1

    @property
    def has_masks(self) -> bool:
        """Whether it also finds each object's pixels."""
        return self.kind == "maskrcnn"

    @property
    def backbone(self) -> Backbone:
        """What makes the features."""
        return self.net.backbone.body

    def forward(self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None) -> Any:
        """Losses in training, detections in evaluation.

        Args:
            images: each (3, H, W), uint8, or floating point in 0..1.
            targets: in training, for each image, ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,) from 0
                and, for Mask R-CNN, ``masks`` (N, H, W). In training images are taken at the size they have.

        Returns:
            In training a dict of losses, each a scalar. In evaluation for each image ``boxes`` (N, 4) in its own
            pixels, ``labels`` (N,) from 0, ``scores`` (N,), best first, and, of Mask R-CNN, ``masks``, bool
            (N, 1, H, W); the other images of the batch change nothing.
        """
        pixels = [image.float() / 255 if image.dtype == torch.uint8 else image for image in images]
        if self.training:
            assert targets is not None, "a detector in training needs targets"
            return self.net(pixels, [{**target, "labels": target["labels"] + self._first} for target in targets])
        found: Detections = [{} for _ in pixels]
        for places in self._alike(pixels):
            for place, one in zip(places, self.net([pixels[place] for place in places]), strict=True):
                found[place] = {**one, "labels": one["labels"] - self._first}
        return found

    def _alike(self, images: Sequence[Tensor]) -> list[list[int]]:
        """Places of images that are padded to one size.

        Global filters see the padding: among images of other sizes an image's detections would be others.
        """
        transform = self.net.transform
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(images):
            size = shortest_edge((image.shape[-2], image.shape[-1]), transform.min_size[-1], transform.max_size)
            groups.setdefault(tuple(math.ceil(side / transform.size_divisible) for side in size), []).append(place)
        return list(groups.values())

    def limit(self, score_thr: float | None = None, max_dets: int | None = None) -> None:
        """Change which detections are given: those above a score, and at most so many an image."""
        holder = self.net if self.kind == "retinanet" else self.net.roi_heads
        wanted = {"score_thr": ("score_thresh", score_thr), "max_dets": ("detections_per_img", max_dets)}
        for name, (theirs, value) in wanted.items():
            if value is not None:
                setattr(holder, theirs, value)
                self.arguments = {**self.arguments, name: value}

    def resize_to(self, size: tuple[int, int]) -> None:
        """Change the size that evaluation works at: shorter side, and longest side at most."""
        self.net.transform.min_size, self.net.transform.max_size = (size[0],), size[1]
        self.arguments = {**self.arguments, "size": list(size)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep the activations of the backbone's blocks at their borders alone."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone, beside norms and biases."""
        return {f"net.backbone.body.{name}" for name in self.backbone.no_weight_decay()}

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the backbone and its neck; what follows depends on what is found."""
        self.net.backbone.compile(*args, **kwargs)


def create_detector(
    arch: str,
    label_names: Sequence[str],
    *,
    detector: str = "retinanet",
    size: tuple[int, int] = (800, 1333),
    native_size: int | tuple[int, int] | None = None,
    backbone_weights: str | Path | None = None,
    pretrained: bool = False,
    model_args: dict[str, Any] | None = None,
    fpn_channels: int = 256,
    head_norm: str = "none",
    anchor_sizes: Sequence[int] | None = None,
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    proposals: int = 1000,
    roi_samples: int = 512,
    score_thr: float = 0.05,
    nms_thr: float = 0.5,
    max_dets: int = 100,
) -> Detector:
    """Make a detector of torchvision on a backbone of this package or of timm.

    RetinaNet (Lin et al., ICCV 2017) reads the last three stages and two levels made of the last; Faster R-CNN (Ren
    et al., NeurIPS 2015) and Mask R-CNN (He et al., ICCV 2017) read four and one. Of a backbone with one grid, ViTDet's
    simple pyramid (Li et al., ECCV 2022) makes the levels.

    Args:
        arch: the backbone's name.
        label_names: names of the classes.
        detector: ``"retinanet"``, ``"fasterrcnn"`` or ``"maskrcnn"``.
        size: shorter and longest side in pixels that images are resized to in evaluation; the aspect stays.
        native_size: see `make_backbone`.
        pretrained: see `make_backbone`.
        backbone_weights: a classification checkpoint to start from.
        model_args: the backbone's own keywords.
        fpn_channels: channels of the levels; the heads' sizes follow them (1024 hidden units at 256).
        head_norm: ``"none"`` as in the papers, or ``"group"``: group norms in neck and heads, for training from scratch
            (He et al., "Rethinking ImageNet Pre-training", ICCV 2019).
        anchor_sizes: side in pixels of each level's anchors, in images as resized; RetinaNet has three, a third of an
            octave apart, from each. By default 32 to 512.
        anchor_ratios: heights over widths of the anchors.
        proposals: of a two-stage detector: boxes that the first stage hands on; in training it chooses them of twice as
            many of each level.
        roi_samples: of a two-stage detector: how many of them, of each image, the second stage is trained on.
        score_thr: detections of smaller scores are left out.
        nms_thr: of two boxes of a class that overlap more, by their intersection over union, one is left out.
        max_dets: detections of an image at most.

    Returns:
        The detector, in training mode.

    Raises:
        FreqFormerError: an unknown detector, or a backbone or weights that do not fit.
    """
    if detector not in DETECTORS:
        raise FreqFormerError(f"there is no detector {detector!r}: choose one of {', '.join(DETECTORS)}")
    if head_norm not in ("none", "group"):
        raise FreqFormerError(f"there is no norm {head_norm!r} of heads: choose none or group")
    one_stage = detector == "retinanet"
    strides = STRIDES[1:] if one_stage else STRIDES
    anchors = tuple(anchor_sizes or (32, 64, 128, 256, 512))
    levels = len(strides) + (2 if one_stage else 1)
    if len(anchors) != levels:
        raise FreqFormerError(f"{detector} has {levels} levels and needs as many anchor sizes, not {len(anchors)}")
    norm = _group_norm if head_norm == "group" else None
    body = make_backbone(
        arch,
        strides=strides,
        native_size=native_size,
        weights=backbone_weights,
        pretrained=pretrained,
        **(model_args or {}),
    )
    pyramid = Pyramid(body, fpn_channels, norm, strides, _p6_p7(fpn_channels) if one_stage else _p6)
    octave = [2 ** (third / 3) for third in range(3)] if one_stage else [1.0]
    generator = AnchorGenerator(
        tuple(tuple(side * step for step in octave) for side in anchors),
        (tuple(anchor_ratios),) * levels,
    )
    per_place = generator.num_anchors_per_location()[0]
    shared: dict[str, Any] = {"image_mean": body.cfg["mean"], "image_std": body.cfg["std"]}
    classes = len(label_names)
    if one_stage:
        net: Any = RetinaNet(
            pyramid,
            classes,
            anchor_generator=generator,
            head=RetinaNetHead(fpn_channels, per_place, classes, norm),
            score_thresh=score_thr,
            nms_thresh=nms_thr,
            detections_per_img=max_dets,
            **shared,
        )
    else:
        net = _two_stages(
            detector,
            pyramid,
            classes + 1,
            norm,
            proposals,
            anchors[0],
            rpn_anchor_generator=generator,
            box_batch_size_per_image=roi_samples,
            **shared,
        )
        net.roi_heads.score_thresh, net.roi_heads.nms_thresh = score_thr, nms_thr
        net.roi_heads.detections_per_img = max_dets
    for head in (net.head,) if one_stage else (net.rpn.head, net.roi_heads.box_predictor, net.roi_heads.mask_predictor):
        if head is not None:
            head.register_forward_hook(_in_float32)
    net.transform = Preparation(size[0], size[1], body.cfg["mean"], body.cfg["std"])
    arguments = {
        "arch": arch,
        "detector": detector,
        "size": list(size),
        "native_size": native_size if isinstance(native_size, int | None) else list(native_size),
        "model_args": model_args or {},
        "fpn_channels": fpn_channels,
        "head_norm": head_norm,
        "anchor_sizes": list(anchors),
        "anchor_ratios": list(anchor_ratios),
        "proposals": proposals,
        "roi_samples": roi_samples,
        "score_thr": score_thr,
        "nms_thr": nms_thr,
        "max_dets": max_dets,
    }
    return Detector(net, arguments, label_names)


def _two_stages(
    kind: str, pyramid: Pyramid, classes: int, norm: Any, proposals: int, smallest: int, **shared: Any
) -> FasterRCNN:
    """Faster or Mask R-CNN; ``classes`` counts the background."""
    channels, hidden = pyramid.out_channels, 4 * pyramid.out_channels
    names = ["0", "1", "2", "3"]

    def pooling(side: int) -> MultiScaleRoIAlign:
        scale = max(1, round(_CANONICAL * smallest))
        pool = MultiScaleRoIAlign(names, side, sampling_ratio=2, canonical_scale=scale, canonical_level=4)
        # Torchvision guesses the strides from the first batch that comes, wrongly where small images are padded.
        pool.scales = [1 / stride for stride in STRIDES]
        finest, coarsest = (stride.bit_length() - 1 for stride in (STRIDES[0], STRIDES[-1]))
        pool.map_levels = initLevelMapper(finest, coarsest, canonical_scale=scale, canonical_level=4)
        return pool

    boxes = pooling(7)
    if norm is None:
        head: nn.Module = TwoMLPHead(channels * 7 * 7, hidden)
    else:
        head = FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [hidden], norm)
    shared |= {
        "box_roi_pool": boxes,
        "box_head": head,
        "box_predictor": FastRCNNPredictor(hidden, classes),
        "rpn_pre_nms_top_n_train": 2 * proposals,
        "rpn_post_nms_top_n_train": proposals,
        "rpn_pre_nms_top_n_test": proposals,
        "rpn_post_nms_top_n_test": proposals,
    }
    if kind == "fasterrcnn":
        return FasterRCNN(pyramid, **shared)
    masks = MaskRCNNHeads(channels, [channels] * 4, 1, norm)
    predictor = MaskRCNNPredictor(channels, channels, classes)
    return MaskRCNN(pyramid, mask_roi_pool=pooling(14), mask_head=masks, mask_predictor=predictor, **shared)


def _in_float32(module: nn.Module, arguments: Any, output: Any) -> Any:
    """What a head gives, in float32: in bfloat16 boxes would lie on every second pixel, and scores be equal."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {name: _in_float32(module, arguments, value) for name, value in output.items()}
    return type(output)(_in_float32(module, arguments, value) for value in output)


def _p6_p7(fpn_channels: int) -> Callable[[int], nn.Module]:
    """Two coarser levels by convolutions of the last stage's features themselves, as in the papers."""

    def make(channels: int) -> nn.Module:
        levels = LastLevelP6P7(channels, fpn_channels)
        # Where these have as many channels as the pyramid torchvision takes the pyramid's.
        levels.use_P5 = False
        return levels

    return make


def _p6(channels: int) -> nn.Module:
    return LastLevelMaxPool()


def _group_norm(channels: int) -> nn.GroupNorm:
    groups = math.gcd(32, channels)
    # Of one channel a group would have a single value where a level has a single place.
    return nn.GroupNorm(groups if groups < channels else groups // 2, channels)
