"""From an RGB image to the network's input, for training and for evaluation."""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from freqformer.errors import FreqFormerError

Transform = Callable[[Image.Image], Tensor]

_PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# What may stand after the dashes of each kind of policy; timm passes over a section it cannot split.
_NUMBER = r"\d+(\.\d+)?"
_SECTIONS = {
    "rand": rf"[mn]\d+|p{_NUMBER}|mstd{_NUMBER}|mmax\d+|inc[01]|t(weights|3aw?)",
    "augmix": rf"[mwd]\d+|a{_NUMBER}|b[01]|mstd{_NUMBER}",
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), f"mstd{_NUMBER}"),
}


def train_transform(
    size: tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    resize: str = "random",
    crop_pct: float = 0.875,
    hflip: float = 0.5,
    vflip: float = 0.0,
    aa: str = "rand-m9-mstd0.5-inc1",
    color_jitter: float = 0.0,
    reprob: float = 0.0,
    remode: str = "pixel",
    recount: int = 1,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    padding: int | None = None,
    on_device: bool = False,
) -> Callable[..., Any]:
    """Build the training transform of DeiT and GFNet.

    The image is brought to the size in one of several ways. Flips, timm's policy of colours and geometry (without a
    policy the colour jitter), normalisation and random erasing follow.

    Args:
        size: (H, W) of the result.
        mean: of each channel, for pixels in 0..1.
        std: of each channel, likewise.
        interpolation: "nearest", "bilinear", "bicubic", "lanczos", or "random": bilinear or bicubic for each image.
        resize: "random" is a random crop resized, or for sizes up to 32 the padded image cropped at random; "crop" a
            random crop of the image that covers ``size / crop_pct``; "squash" the whole image, whatever its aspect.
        crop_pct: the side of the "crop" as a part of the resized image's, in (0, 1].
        hflip: probability of the horizontal flip.
        vflip: probability of the vertical flip.
        aa: timm's policy, such as "rand-m9-mstd0.5-inc1", "augmix-m5-w4", "original"; "" or "none" is off.
        color_jitter: largest relative change of brightness, contrast and saturation, where ``aa`` is off.
        reprob: probability of erasing rectangles.
        remode: what they are filled with: "pixel" (noise), "rand" (a random colour each) or "const" (the mean).
        recount: the most rectangles an image loses; they share the area of one.
        scale: smallest and largest part of the image's area that a resized crop takes.
        ratio: smallest and largest width over height of that part.
        padding: zeros around sizes up to 32 before the crop, in pixels; an eighth of the side when None.
        on_device: stop after the flips, for `DeviceAugmentation` to go on with whole batches.

    Returns:
        A picklable function from an RGB image to a float32 tensor (3, H, W), or uint8 when ``on_device``. Given a
        `Region` beside the image, it also returns the region that the result shows; what a policy moves is not
        followed.

    Raises:
        FreqFormerError: an argument is out of its range or the policy is unknown.
    """
    flips = (("horizontal flip", hflip), ("vertical flip", vflip))
    for what, probability in (*flips, ("random erasing", reprob)):
        if not 0 <= probability <= 1:
            raise FreqFormerError(f"the probability of {what} must be in 0..1, not {probability}")
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise FreqFormerError(f"the crop's scale must satisfy 0 < low <= high <= 1, not {scale}")
    if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
        raise FreqFormerError(f"the crop's ratio must satisfy 0 < low <= high, not {ratio}")
    modes = ["bilinear", "bicubic"] if interpolation == "random" else [interpolation]
    if resize == "random":
        crops = [_random_crop(size, scale, ratio, padding, _interpolation(mode)) for mode in modes]
    elif resize == "crop":
        crops = [v2.Compose([_covering(size, crop_pct, mode), v2.RandomCrop(size)]) for mode in modes]
    elif resize == "squash":
        crops = [v2.Resize(size, _interpolation(mode)) for mode in modes]
    else:
        raise FreqFormerError(f"unknown resize {resize!r}: choose random, crop or squash")
    steps: list[Callable] = [crops[0] if len(crops) == 1 else v2.RandomChoice(crops)]
    if hflip:
        steps.append(v2.RandomHorizontalFlip(hflip))
    if vflip:
        steps.append(v2.RandomVerticalFlip(vflip))
    if on_device:
        return v2.Compose([*steps, partial(_image_alone, _to_bytes)])
    appearance: list[Callable] = []
    if aa not in ("", "none"):
        appearance.append(_policy(aa, size, mean, tuple(_PILLOW[mode] for mode in modes)))
    elif color_jitter:
        appearance.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    appearance.append(_normaliser(mean, std))
    if reprob:
        appearance.append(random_erasing(reprob, remode, recount))
    return v2.Compose([*steps, *(partial(_image_alone, step) for step in appearance)])


def random_erasing(reprob: float, remode: str, recount: int, device: str = "cpu") -> RandomErasing:
    """timm's random erasing of normalised images, one (3, H, W) or a batch (Zhong et al., AAAI 2020).

    Args:
        reprob: see `train_transform`.
        remode: see `train_transform`.
        recount: see `train_transform`.
        device: where its noise is made.

    Raises:
        FreqFormerError: another mode, or fewer rectangles than one.
    """
    if remode not in ("pixel", "rand", "const"):
        raise FreqFormerError(f"unknown mode of random erasing {remode!r}: choose pixel, rand or const")
    if recount < 1:
        raise FreqFormerError(f"random erasing needs a count of at least 1, not {recount}")
    return RandomErasing(reprob, mode=remode, max_count=recount, device=device)


def eval_transform(
    size: tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    crop_pct: float = 0.875,
    crop_mode: str = "center",
) -> Transform:
    """Build the evaluation transform: resize to ``size / crop_pct``, cut out the centre, normalise.

    Args:
        size: (H, W) of the result.
        mean: of each channel, for pixels in 0..1.
        std: of each channel, likewise.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        crop_pct: the side of the centre crop as a part of the resized image's, in (0, 1].
        crop_mode: timm's word for how the image is resized: "center" keeps its aspect and covers the size, "squash"
            does not keep it.

    Returns:
        A picklable function from an RGB image to a float32 tensor (3, H, W).

    Raises:
        FreqFormerError: an argument is out of its range.
    """
    if crop_mode == "center":
        resize = _covering(size, crop_pct, interpolation)
    elif crop_mode == "squash":
        resize = v2.Resize(_enlarged(size, crop_pct), _interpolation(interpolation))
    else:
        raise FreqFormerError(
            f"unknown crop_mode {crop_mode!r} of the model: choose --resize squash, or --resize crop, in its place"
        )
    return v2.Compose([resize, v2.CenterCrop(size), _normaliser(mean, std)])


def whole_transform(
    size: tuple[int, int], *, mean: Sequence[float], std: Sequence[float], interpolation: str = "bicubic"
) -> Transform:
    """Build a transform that squeezes the whole image to (H, W), whatever its aspect, and normalises it."""
    return eval_transform(size, mean=mean, std=std, interpolation=interpolation, crop_pct=1.0, crop_mode="squash")


def _random_crop(
    size: tuple[int, int],
    scale: Sequence[float],
    ratio: Sequence[float],
    padding: int | None,
    mode: InterpolationMode,
) -> Callable:
    if max(size) > 32:
        return v2.RandomResizedCrop(size, scale=scale, ratio=ratio, interpolation=mode)
    # The usual 4 pixels for 32, in proportion below.
    around = [max(1, size[1] // 8), max(1, size[0] // 8)] if padding is None else padding
    return v2.Compose([v2.Resize(size, mode), v2.RandomCrop(size, padding=around)])


def _image_alone(step: Callable, image: Any, *others: Any) -> Any:
    return (step(image), *others) if others else step(image)


def _interpolation(name: str) -> InterpolationMode:
    if name not in _PILLOW:
        raise FreqFormerError(f"unknown interpolation {name!r}: choose one of {', '.join(_PILLOW)}")
    return InterpolationMode(name)


def _enlarged(size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """What a crop of (H, W) is cut from."""
    if not 0 < crop_pct <= 1:
        raise FreqFormerError(f"crop_pct must be above 0 and at most 1, not {crop_pct}")
    return math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct)


def _covering(size: tuple[int, int], crop_pct: float, interpolation: str) -> Callable[..., Any]:
    return partial(_cover, size=_enlarged(size, crop_pct), mode=_interpolation(interpolation))


def _cover(image: Image.Image, *others: Any, size: tuple[int, int], mode: InterpolationMode) -> Any:
    """Resize to the smallest image of the same aspect that covers ``size`` (H, W), and what goes with it."""
    (height, width), (width_in, height_in) = size, image.size
    inputs = [image, *others]
    # Far more of a thin image than is kept would be enlarged with it: a line of 10,000 pixels to gigabytes.
    longest_h = math.ceil(8 * height * width_in / width)
    longest_w = math.ceil(8 * width * height_in / height)
    if height_in > longest_h or width_in > longest_w:
        kept = min(height_in, longest_h), min(width_in, longest_w)
        top, left = round((height_in - kept[0]) / 2), round((width_in - kept[1]) / 2)
        inputs = [F.crop(each, top, left, *kept) for each in inputs]
        height_in, width_in = kept
    if height_in * width <= width_in * height:
        target = [height, width_in * height // height_in]
    else:
        target = [height_in * width // width_in, width]
    if [height_in, width_in] != target:
        inputs = [F.resize(each, target, mode) for each in inputs]
    return tuple(inputs) if others else inputs[0]


def _normaliser(mean: Sequence[float], std: Sequence[float]) -> Transform:
    mean_, std_ = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    return partial(_to_tensor, scale=1 / (255 * std_), shift=-mean_ / std_)


def _to_tensor(image: Image.Image, scale: Tensor, shift: Tensor) -> Tensor:
    """One pass over the pixels in place of dividing by 255, subtracting the mean and dividing by std."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return torch.addcmul(shift, pixels.to(torch.float32, memory_format=torch.contiguous_format), scale)


def _to_bytes(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _policy(
    aa: str, size: tuple[int, int], mean: Sequence[float], interpolations: tuple[Image.Resampling, ...]
) -> Callable[[Image.Image], Image.Image]:
    kind, *sections = aa.split("-")
    if kind not in _SECTIONS:
        raise FreqFormerError(f"unknown augmentation {aa!r}: begin with one of {', '.join(_SECTIONS)}")
    if wrong := [section for section in sections if not re.fullmatch(_SECTIONS[kind], section)]:
        raise FreqFormerError(f"unknown section {wrong[0]!r} in augmentation {aa!r}; see timm's auto_augment")
    settings = {
        "translate_const": int(min(size) * 0.45),
        "img_mean": tuple(min(255, round(255 * channel)) for channel in mean),
        # Of several timm draws one for each operation.
        "interpolation": interpolations if len(interpolations) > 1 else interpolations[0],
    }
    if kind == "rand":
        policy = rand_augment_transform(aa, settings)
    elif kind == "augmix":
        policy = augment_and_mix_transform(aa, {**settings, "translate_pct": 0.3})
    else:
        policy = auto_augment_transform(aa, settings)
    chains = policy.policy if hasattr(policy, "policy") else [policy.ops]
    for op in (op for chain in chains for op in chain):
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize
    return policy


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    # timm asks for as few as no bits; Pillow before 13 answered with black, and 13 refuses.
    return ImageOps.posterize(image, min(bits, 8)) if bits > 0 else Image.new(image.mode, image.size)
