"""Images to choose from: scikit-learn's, and generated ones whose frequencies are known."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from ..data import open_images
from .subject import Subject

_GENERATED_SIDE = 256
_DIGITS = (3, 0, 7, 8)


def write_examples(folder: Path, subject: Subject) -> dict[str, Path]:
    """Write a model's examples as PNG files.

    Args:
        folder: where to; it is made.
        subject: the model; one of digits gets digits.

    Returns:
        The files by the examples' names.
    """
    side = _GENERATED_SIDE
    if subject.task == "classification":
        # Of the input's own size, so that no resizing moves their frequencies.
        side = max(subject.model.pretrained_cfg["input_size"][1:])
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, image in {**_real(subject), **_generated(side)}.items():
        written[name] = folder / f"{name.replace(' ', '-')}.png"
        image.save(written[name])
    return written


def _real(subject: Subject) -> dict[str, Image.Image]:
    if subject.labels == [str(digit) for digit in range(10)]:
        held_out = open_images("DIGITS", None, "val")
        firsts = [list(held_out.targets).index(digit) for digit in _DIGITS]
        return {f"a {held_out.classes[held_out.targets[i]]}": held_out.load(i) for i in firsts}
    from sklearn.datasets import load_sample_image

    return {name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")}


def _generated(side: int) -> dict[str, Image.Image]:
    row, column = np.mgrid[:side, :side]
    # Whole periods, so that each grating is one point of the spectrum and its mirror image.
    slow, fast = (max(1, round(share * side / 2)) for share in (0.06, 0.25))
    half = max(1, side // 16)
    pictures = {
        "slow waves": np.cos(2 * math.pi * slow * column / side),
        "fast waves": np.cos(2 * math.pi * fast * (row + column) / side),
        "checkerboard": np.where((row // half + column // half) % 2, 1.0, -1.0),
        "noise": np.random.default_rng(0).uniform(-1, 1, (side, side)),
    }
    return {
        name: Image.fromarray(np.rint(127.5 + 120 * pixels).astype(np.uint8)).convert("RGB")
        for name, pixels in pictures.items()
    }
