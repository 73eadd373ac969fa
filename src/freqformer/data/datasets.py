"""The data sets by name."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from freqformer.data.cifar import open_cifar
from freqformer.data.fine_grained import open_cars, open_flowers, open_pets
from freqformer.data.folders import open_folders
from freqformer.data.hub import open_hub
from freqformer.data.idx import open_idx
from freqformer.data.images import Images, identify_number, read_array
from freqformer.data.listed import open_fgvc, open_inaturalist
from freqformer.data.shards import open_wds
from freqformer.errors import FreqFormerError, MissingExtra

_ON_DISK: dict[str, Callable[[str, Path, str], Images]] = {
    "IMNET": open_folders,
    "FOLDER": open_folders,
    "FASHION_MNIST": open_idx,
    "MNIST": open_idx,
    "CIFAR10": open_cifar,
    "CIFAR100": open_cifar,
    "CARS": open_cars,
    "FLOWERS": open_flowers,
    "PETS": open_pets,
    "INAT": open_inaturalist,
    "INAT19": open_inaturalist,
    "FGVC": open_fgvc,
    "WDS": open_wds,
}
# Of these a split need not have every class.
_MAY_LACK_CLASSES = (open_folders, open_fgvc, open_wds)
DATA_SETS: tuple[str, ...] = (*_ON_DISK, "DIGITS", "hf:NAME")


def open_images(
    name: str,
    path: str | Path | None,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
) -> Images:
    """Open one split of a data set; nothing is decoded yet.

    Args:
        name: one of ``DATA_SETS``, where "hf:NAME" stands for any data set of Hugging Face.
        path: the folder the data set lies in; DIGITS comes with scikit-learn and needs none, and "hf:NAME" names
            its own.
        split: "train" or "val".
        classes: label names that the targets must follow, such as a checkpoint's. Class names that are all
            among them are matched by name (for folders, shards and FGVC they may be fewer), otherwise in order.
        limit: take this many images, the first of a fixed shuffled order with the classes in balance.

    Returns:
        The images.

    Raises:
        FreqFormerError: the name, split, path, classes or limit is wrong, or the files are.
        MissingExtra: the data set needs a library that is not installed.
    """
    from_hub = str(name).startswith("hf:") and name != "hf:NAME"
    if not from_hub and name not in DATA_SETS[:-1]:
        near = difflib.get_close_matches(str(name).upper(), DATA_SETS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise FreqFormerError(f"unknown data set {name!r}: {hint}choose one of {', '.join(DATA_SETS)}")
    if split not in ("train", "val"):
        raise FreqFormerError(f"unknown split {split!r}: choose train or val")
    if limit is not None and limit < 1:
        raise FreqFormerError(f"the number of images to train on must be at least 1, not {limit}")
    opener = _ON_DISK.get(name)
    if from_hub:
        images = open_hub(name, None if path is None else _existing(name, path), split)
    else:
        images = opener(name, _existing(name, path), split) if opener else _open_digits(split)
    if classes is not None:
        images = _follow(images, list(classes), fewer=opener in _MAY_LACK_CLASSES)
    if limit is not None and limit < len(images):
        chosen = balanced_order(images.targets)[:limit]
        images = replace(images, targets=images.targets[chosen], rows=images.rows[chosen])
    return images


def balanced_order(targets: np.ndarray) -> np.ndarray:
    """Shuffle in a fixed way such that each stretch of the order has the classes in balance.

    Args:
        targets: int64 (N,).

    Returns:
        A permutation of 0..N-1, int64 (N,): first one image of each class, then a second of each, and so on
        while a class has any left.
    """
    # RandomState's streams are frozen, those of NumPy's newer generators are not.
    shuffled = np.random.RandomState(0).permutation(len(targets))
    return shuffled[np.argsort(_rank_in_class(targets[shuffled]), kind="stable")]


def _rank_in_class(targets: np.ndarray) -> np.ndarray:
    """Number each image among those of its own class, in order."""
    counts = np.bincount(targets)
    ranks = np.empty(len(targets), dtype=np.int64)
    ranks[np.argsort(targets, kind="stable")] = np.concatenate([np.arange(count) for count in counts])
    return ranks


def _existing(name: str, path: str | Path | None) -> Path:
    if path is None:
        raise FreqFormerError(f"{name} needs the folder that its images lie in; give --data-path")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise FreqFormerError(f"{name}: {folder} {what}; check --data-path")
    return folder


def _follow(images: Images, classes: list[str], *, fewer: bool) -> Images:
    own = images.classes
    if own == classes:
        # By number: names may repeat, as ImageNet's English ones do.
        return images
    by_name = set(own) <= set(classes)
    if len(own) != len(classes) and not (fewer and by_name):
        raise FreqFormerError(
            f"class-count mismatch: the data has {len(own)} classes and the model {len(classes)}; "
            "use the data set that the model was trained on"
        )
    if not by_name:
        return replace(images, classes=classes)
    target_of = {c: target for target, c in enumerate(classes)}
    table = np.array([target_of[c] for c in own], dtype=np.int64)
    return replace(images, classes=classes, targets=table[images.targets])


def _open_digits(split: str) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise MissingExtra("scikit-learn", "train") from error
    digits = load_digits()
    held_out = _rank_in_class(digits.target) % 5 == 4
    rows = np.flatnonzero(held_out if split == "val" else ~held_out)
    return Images(
        classes=[str(digit) for digit in range(10)],
        targets=digits.target[rows].astype(np.int64),
        rows=rows,
        read=partial(read_array, np.rint(digits.images * (255 / 16)).astype(np.uint8)),
        identify=partial(identify_number, "digits"),
    )
