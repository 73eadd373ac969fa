"""Augmentation of whole batches where the network runs: colours, normalisation and random erasing."""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from freqformer.data.randomness import seeded
from freqformer.data.transforms import random_erasing
from freqformer.errors import FreqFormerError

# torchvision counts magnitudes in steps of a 30th of the same largest changes that timm counts in tenths.
_STEPS = 31


class DeviceAugmentation:
    """What `train_transform` leaves out with ``on_device``, for a batch on any device.

    All randomness follows torch's generators, which a training step has seeded.

    Args:
        mean: of each channel, for pixels in 0..1.
        std: of each channel, likewise.
        aa: ``"rand-mM[-nN][-pP][-mstdS]-inc1"`` or ``"original"``, timm's policies of which torchvision has the
            operations; "" or "none" is off. Each image has its own draws.
        color_jitter: see `train_transform`.
        reprob: see `train_transform`.
        remode: see `train_transform`.
        recount: see `train_transform`.

    Raises:
        FreqFormerError: torchvision has no counterpart of the policy, or an argument is out of its range.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        aa: str = "rand-m9-mstd0.5-inc1",
        color_jitter: float = 0.0,
        reprob: float = 0.0,
        remode: str = "pixel",
        recount: int = 1,
    ) -> None:
        self.mean, self.std = list(mean), list(std)
        self.colour: Callable[[Tensor], Tensor] | None = None
        if aa not in ("", "none"):
            self.colour = _policy(aa, [float(round(255 * channel)) for channel in mean])
        elif color_jitter:
            self.colour = v2.ColorJitter(color_jitter, color_jitter, color_jitter)
        self.erase = random_erasing(reprob, remode, recount) if reprob else None

    def __call__(self, images: Tensor) -> Tensor:
        """Images, uint8 (B, 3, H, W), to the network's input, float32 of the same shape.

        Raises:
            FreqFormerError: the images are normalised already.
        """
        if images.dtype != torch.uint8:
            raise FreqFormerError(f"augmentation on the device needs images of bytes (uint8), not {images.dtype}")
        if self.colour is not None:
            images = torch.stack([self.colour(image) for image in images])
        images = F.normalize(F.to_dtype(images, torch.float32, scale=True), self.mean, self.std)
        if self.erase is not None:
            self.erase.device = str(images.device)
            # timm draws the rectangles from Python's generator.
            with seeded(int(torch.randint(2**62, ()))):
                images = self.erase(images)
        return images


class _RandAugment:
    """timm's RandAugment with increasing severity, by torchvision's operations."""

    def __init__(self, magnitude: float, operations: int, probability: float, spread: float, fill: list[float]) -> None:
        self.magnitude, self.operations, self.probability, self.spread = magnitude, operations, probability, spread
        self.levels = [
            v2.RandAugment(1, level, _STEPS, interpolation=InterpolationMode.BILINEAR, fill=fill)
            for level in range(_STEPS)
        ]

    def __call__(self, image: Tensor) -> Tensor:
        for _ in range(self.operations):
            if torch.rand(()) < self.probability:
                drawn = self.magnitude + self.spread * float(torch.randn(()))
                image = self.levels[round(min(max(drawn, 0.0), 10.0) / 10 * (_STEPS - 1))](image)
        return image


def _policy(aa: str, fill: list[float]) -> Callable[[Tensor], Tensor]:
    kind, *sections = aa.split("-")
    if aa == "original":
        return v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, InterpolationMode.BILINEAR, fill=fill)
    # timm's defaults.
    settings = {"m": 10.0, "n": 2.0, "p": 0.5, "mstd": 0.0, "inc": 0.0}
    matches = [re.fullmatch(r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?)", section) for section in sections]
    for match in matches:
        if match is not None:
            settings[match[1]] = float(match[2])
    if kind != "rand" or None in matches or settings["inc"] != 1 or settings["mstd"] > 100:
        raise FreqFormerError(
            f"torchvision has no counterpart of --aa {aa} on the device: choose rand-mM-nN-mstdS-inc1, original or "
            "none, or leave out --augment-on-device"
        )
    return _RandAugment(settings["m"], int(settings["n"]), settings["p"], settings["mstd"], fill)
