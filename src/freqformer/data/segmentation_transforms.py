"""From an image and its mask to a network's input and target, for training and for evaluation."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from freqformer.data.masks import IGNORED
from freqformer.errors import FreqFormerError

SceneTransform = Callable[[Image.Image, Tensor], tuple[Tensor, Tensor]]

# A line of pixels would otherwise be enlarged to gigabytes.
_LONGEST = 16
_REDRAWS = 10


def segmentation_transform(
    crop: tuple[int, int],
    *,
    shorter: int | None,
    scale: tuple[float, float] = (0.5, 2.0),
    hflip: float = 0.5,
    color_jitter: float = 0.0,
    max_share: float = 1.0,
) -> SceneTransform:
    """Build the training transform of Semantic FPN and of mmsegmentation: scale, crop, flip, jitter.

    Args:
        crop: (H, W) of the result; smaller images are padded at the right and the bottom with zeros and ``IGNORED``.
        shorter: the shorter side that images are resized to before the random scale; None leaves them as they are.
        scale: smallest and largest random scale.
        hflip: probability of the horizontal flip.
        color_jitter: largest relative change of brightness, contrast and saturation.
        max_share: draw the crop again, up to ten times, while one class has this share or more of its pixels that
            have a class (mmsegmentation's ``cat_max_ratio``); 1 takes the first.

    Returns:
        A picklable function from an RGB image and its mask, integers (h, w), to uint8 (3, H, W) and int64 (H, W).

    Raises:
        FreqFormerError: an argument is out of its range.
    """
    if min(crop) < 1:
        raise FreqFormerError(f"the crop must be at least 1x1 pixels, not {crop[0]}x{crop[1]}")
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        raise FreqFormerError(f"the random scale must satisfy 0 < low <= high, not {tuple(scale)}")
    if not 0 <= hflip <= 1:
        raise FreqFormerError(f"the probability of horizontal flip must be in 0..1, not {hflip}")
    if color_jitter < 0:
        raise FreqFormerError(f"the colour jitter must be at least 0, not {color_jitter}")
    if not 0 < max_share <= 1:
        raise FreqFormerError(f"a class's largest share of a crop must be above 0 and at most 1, not {max_share}")
    return partial(
        _train,
        crop=(crop[0], crop[1]),
        shorter=_checked(shorter),
        scale=(scale[0], scale[1]),
        hflip=hflip,
        jitter=v2.ColorJitter(color_jitter, color_jitter, color_jitter) if color_jitter else None,
        max_share=max_share,
    )


def segmentation_eval_transform(shorter: int | None) -> SceneTransform:
    """Build the evaluation transform: it resizes the image and leaves the mask, at whose size scores are taken.

    Args:
        shorter: the shorter side that images are resized to; None leaves them as they are.

    Returns:
        A picklable function from an RGB image and its mask, integers (H, W), to uint8 (3, h, w) and int64 (H, W).

    Raises:
        FreqFormerError: the side is below 1.
    """
    return partial(_evaluation, shorter=_checked(shorter))


def _checked(shorter: int | None) -> int | None:
    if shorter is not None and shorter < 1:
        raise FreqFormerError(f"the shorter side must be at least 1 pixel, not {shorter}")
    return shorter


def _train(
    image: Image.Image,
    mask: Tensor,
    crop: tuple[int, int],
    shorter: int | None,
    scale: tuple[float, float],
    hflip: float,
    jitter: v2.ColorJitter | None,
    max_share: float,
) -> tuple[Tensor, Tensor]:
    factor = float(torch.empty(()).uniform_(*scale))
    size = _sized(image, shorter, factor)
    image, mask = _resize(image, size), _resize_mask(mask, size)
    window = _window(mask, crop, max_share)
    image, mask = F.crop(image, *window), mask[window[0] :, window[1] :][: window[2], : window[3]]
    if torch.rand(()) < hflip:
        image, mask = F.horizontal_flip(image), mask.flip(-1)
    if jitter is not None:
        # Before the padding, which is black for any brightness.
        image = jitter(image)
    around = [0, crop[1] - window[3], 0, crop[0] - window[2]]
    return pad(_to_bytes(image), around), pad(mask.to(torch.int64), around, value=IGNORED)


def _evaluation(image: Image.Image, mask: Tensor, shorter: int | None) -> tuple[Tensor, Tensor]:
    return _to_bytes(_resize(image, _sized(image, shorter))), mask.as_subclass(Tensor).to(torch.int64)


def _sized(image: Image.Image, shorter: int | None, factor: float = 1.0) -> list[int]:
    """Height and width once the shorter side is ``shorter`` times the factor; far thinner images become smaller."""
    short, long = sorted((image.height, image.width))
    base = short if shorter is None else min(shorter, _LONGEST * shorter * short / long)
    return [max(1, round(side * base * factor / short)) for side in (image.height, image.width)]


def _resize(image: Image.Image, size: list[int]) -> Image.Image:
    if [image.height, image.width] == size:
        return image
    return F.resize(image, size, InterpolationMode.BILINEAR)


def _resize_mask(mask: Tensor, size: list[int]) -> Tensor:
    # Torchvision's own way with masks takes each pixel's corner, half a pixel beside the image's middle.
    plain = mask.as_subclass(Tensor)
    return F.resize(plain[None], size, InterpolationMode.NEAREST_EXACT)[0] if list(plain.shape) != size else plain


def _window(mask: Tensor, crop: tuple[int, int], max_share: float) -> tuple[int, int, int, int]:
    """A random window of the crop's size, or the image's where it is smaller: top, left, height and width."""
    height, width = min(crop[0], mask.shape[0]), min(crop[1], mask.shape[1])
    for _ in range(1 + _REDRAWS):
        top = int(torch.randint(mask.shape[0] - height + 1, ()))
        left = int(torch.randint(mask.shape[1] - width + 1, ()))
        if max_share >= 1:
            break
        counts = torch.bincount(mask[top : top + height, left : left + width].flatten(), minlength=IGNORED + 1)
        counts[IGNORED] = 0
        if counts.max() < max_share * counts.sum():
            break
    return top, left, height, width


def _to_bytes(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
