"""From an image and the instances in it to what a detector is trained on."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from freqformer.errors import FreqFormerError

Target = dict[str, Any]


def detection_transform(
    sizes: Sequence[int],
    longest: int,
    *,
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float = 0.0,
    jitter_scale: tuple[float, float] | None = None,
) -> Callable[[Image.Image, Target], tuple[Tensor, Target]]:
    """Build the training transform of detectors.

    The image is resized by `shortest_edge` to one of several sizes, or jittered around it in scale; flips and a
    jitter of colours follow. Instances that are left with less than a pixel are dropped.

    Args:
        sizes: of the shorter side in pixels; one is drawn for each image.
        longest: the longest side in pixels.
        hflip: probability of the horizontal flip.
        vflip: probability of the vertical flip.
        color_jitter: largest relative change of brightness, contrast and saturation.
        jitter_scale: smallest and largest factor by which the image is made larger or smaller than its size; what is
            larger is cut to that size at random (Ghiasi et al., CVPR 2021, where it is 0.1 to 2).

    Returns:
        A picklable function of an RGB image and a target as `Instances.load` gives it. It returns a uint8 tensor
        (3, h, w) and the target moved along, in plain tensors.

    Raises:
        FreqFormerError: an argument is out of its range.
    """
    if not sizes or min(sizes) < 1 or longest < 1:
        raise FreqFormerError(f"sizes of images must be at least 1 pixel, not {list(sizes)} and at most {longest}")
    for what, probability in (("horizontal flip", hflip), ("vertical flip", vflip)):
        if not 0 <= probability <= 1:
            raise FreqFormerError(f"the probability of {what} must be in 0..1, not {probability}")
    if not 0 <= color_jitter <= 1:
        raise FreqFormerError(f"the colour jitter must be in 0..1, not {color_jitter}")
    if jitter_scale is not None and not (len(jitter_scale) == 2 and 0 < jitter_scale[0] <= jitter_scale[1] < math.inf):
        raise FreqFormerError(f"the jitter of the scale must satisfy 0 < low <= high, not {jitter_scale}")
    steps: list[Callable] = [
        v2.ToImage(),
        partial(_resize, sizes=tuple(sizes), longest=longest, jitter=jitter_scale),
    ]
    if hflip:
        steps.append(v2.RandomHorizontalFlip(hflip))
    if vflip:
        steps.append(v2.RandomVerticalFlip(vflip))
    if color_jitter:
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    return v2.Compose([*steps, _sanitise])


def shortest_edge(size: tuple[int, int], shorter: int, longest: int) -> tuple[int, int]:
    """Say to what size an image is resized that keeps its aspect.

    Args:
        size: (H, W) of the image.
        shorter: what its shorter side becomes, if the longer one allows it.
        longest: the most that its longer side may become.

    Returns:
        (H, W), each at least 1.
    """
    scale = _scale(size, shorter, longest)
    return _scaled(size[0], scale), _scaled(size[1], scale)


def _scale(size: tuple[int, int], shorter: int, longest: int) -> float:
    return min(shorter / min(size), longest / max(size))


def _scaled(side: int, scale: float) -> int:
    return max(1, int(side * scale + 0.5))


def _resize(
    image: Tensor, target: Target, sizes: tuple[int, ...], longest: int, jitter: tuple[float, float] | None
) -> tuple[Tensor, Target]:
    shorter = sizes[int(torch.randint(len(sizes), ()))]
    height, width = image.shape[-2:]
    whole = shortest_edge((height, width), shorter, longest)
    if jitter is None:
        return _all(partial(_resized, size=list(whole)), image, target)
    factor = float(torch.empty(()).uniform_(*jitter))
    scale = factor * _scale((height, width), shorter, longest)
    # What would be cut off is never resized: twice the size is four times the memory of all masks.
    window = [min(side, math.ceil(limit / scale)) for side, limit in zip((height, width), whole, strict=True)]
    top, left = (int(torch.randint(side - kept + 1, ())) for side, kept in zip((height, width), window, strict=True))
    size = [min(limit, _scaled(side, scale)) for side, limit in zip(window, whole, strict=True)]
    crop = partial(F.crop, top=top, left=left, height=window[0], width=window[1])
    return _all(lambda value: _resized(crop(value), size), image, target)


def _resized(value: Any, size: list[int]) -> Any:
    if not isinstance(value, tv_tensors.Mask):
        return F.resize(value, size, antialias=True)
    # Torchvision's own way with masks takes each pixel's corner, half a pixel beside the image's middle.
    return tv_tensors.Mask(F.resize(value.as_subclass(Tensor), size, InterpolationMode.NEAREST_EXACT))


def _all(step: Callable[[Any], Any], image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Move the image, and of the target whatever has a place in it."""
    moved = {key: step(value) if isinstance(value, tv_tensors.TVTensor) else value for key, value in target.items()}
    return step(image), moved


def _sanitise(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Cut boxes to the image, drop the instances of which nothing is left, and return plain tensors."""
    boxes, kept = F.sanitize_bounding_boxes(F.clamp_bounding_boxes(target["boxes"]))
    if "masks" in target:
        drawn = target["masks"].flatten(1).any(1).bool()  # Of uint8 any() is uint8.
        boxes, kept = boxes[drawn[kept]], kept & drawn
    others = {key: value[kept] for key, value in target.items() if key != "boxes"}
    return _plain(image), {key: _plain(value) for key, value in {"boxes": boxes, **others}.items()}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor).contiguous()
