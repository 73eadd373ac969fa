"""MNIST and Fashion-MNIST: the IDX files of Yann LeCun's page, plain or compressed by gzip."""

import gzip
import math
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from freqformer.data.images import Images, identify_number, read_array
from freqformer.errors import FreqFormerError

_CLASSES = {
    "MNIST": [str(digit) for digit in range(10)],
    "FASHION_MNIST": [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ],
}
_TORCHVISION = {"MNIST": "MNIST/raw", "FASHION_MNIST": "FashionMNIST/raw"}


def open_idx(name: str, root: Path, split: str) -> Images:
    """Open one split of MNIST or FASHION_MNIST.

    Args:
        name: "MNIST" or "FASHION_MNIST".
        root: the folder of the four IDX files, or the one that torchvision downloads into.
        split: "train" or "val" (the files named t10k).

    Returns:
        The images in the files' order.

    Raises:
        FreqFormerError: a file is missing, damaged, or does not fit its partner.
    """
    stem = "train" if split == "train" else "t10k"
    image_file = _find(name, root, f"{stem}-images-idx3-ubyte")
    label_file = _find(name, root, f"{stem}-labels-idx1-ubyte")
    pixels, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if len(pixels) != len(labels):
        raise FreqFormerError(
            f"{image_file} has {len(pixels)} images but {label_file.name} has {len(labels)} labels; download both again"
        )
    classes = _CLASSES[name]
    if labels.max(initial=0) >= len(classes):
        raise FreqFormerError(f"{label_file} has the label {labels.max()}, above 9; download it again")
    return Images(
        classes=classes,
        targets=labels.astype(np.int64),
        rows=np.arange(len(labels)),
        read=partial(read_array, pixels),
        identify=partial(identify_number, f"{name.lower()}/{'train' if split == 'train' else 'test'}"),
    )


def read_idx(path: Path, dims: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes.

    Args:
        path: the file, compressed if its name ends in .gz.
        dims: how many dimensions it must have.

    Returns:
        A read-only uint8 array of that many dimensions.

    Raises:
        FreqFormerError: the file cannot be read or is not such a file.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise FreqFormerError(f"cannot read {path}: {error}; download it again") from error
    header = 4 + 4 * dims
    if content[:4] != bytes([0, 0, 8, dims]):
        raise FreqFormerError(f"{path} is not an IDX file of bytes in {dims} dimensions; download it again")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if len(content) != header + math.prod(shape) or 0 in shape:
        raise FreqFormerError(
            f"{path} holds {len(content)} bytes where its header announces {header + math.prod(shape)} for "
            f"{'x'.join(map(str, shape))}; download it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find(name: str, root: Path, file: str) -> Path:
    for folder in (root, root / _TORCHVISION[name]):
        for candidate in (folder / file, folder / f"{file}.gz"):
            if candidate.is_file():
                return candidate
    raise FreqFormerError(
        f"{name}: no {file}[.gz] in {root} or {root / _TORCHVISION[name]}; point --data-path to the IDX files"
    )
