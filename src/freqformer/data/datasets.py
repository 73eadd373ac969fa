"""The data sets by name."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from freqformer.data.cifar import open_cifar
from freqformer.data.class_names import places_among
from freqformer.data.fine_grained import open_cars, open_flowers, open_pets
from freqformer.data.folders import open_folders
from freqformer.data.hub import VALIDATION, hub_splits, open_hub
from freqformer.data.idx import open_idx
from freqformer.data.images import Images, identify_number, read_array
from freqformer.data.listed import FGVC_SPLITS, open_fgvc, open_inaturalist
from freqformer.data.shards import open_wds
from freqformer.data.vtab import VTAB_SPLITS, VTAB_TASKS, open_vtab
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
    # CIFAR100, FLOWERS and PETS are the whole data sets.
    **dict.fromkeys(VTAB_TASKS, open_vtab),
}
# Of these a split need not have every class.
_MAY_LACK_CLASSES = (open_folders, open_fgvc, open_wds)
DATA_SETS: tuple[str, ...] = (*_ON_DISK, "DIGITS", "hf:NAME")

# A fixed division of the training split, for tuning where there is no split for it.
_PARTS = ("train80", "train20")


class SweepSplits(NamedTuple):
    """The splits that settings are tuned on, and those that the best ones are then trained and reported on."""

    tune_train: str
    tune_val: str
    final_train: str
    final_val: str


_DIVIDED = SweepSplits(*_PARTS, "train", "val")
_VTAB = SweepSplits("train800", "val200", "train800val200", "test")
_THREE = SweepSplits("train", "val", "trainval", "test")


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
        name: one of ``DATA_SETS``, where "hf:NAME" stands for any data set of Hugging Face; VTAB's tasks may have
            "vtab:" before them.
        path: the folder the data set lies in; DIGITS comes with scikit-learn and needs none, and "hf:NAME" names
            its own.
        split: "train" or "val", which every data set has ("validation" is "val"); "train80" or "train20", a fixed
            division of "train" into 4/5 and 1/5 of every class; and, where the data set has it, "train800", "val200",
            "train800val200", "trainval", "test" or, of Hugging Face, any other.
        classes: label names that the targets must follow, such as a checkpoint's. Class names that are all
            among them are matched by name (for folders, shards and FGVC they may be fewer), otherwise in order.
        limit: take this many images, the first of a fixed shuffled order with the classes in balance.

    Returns:
        The images.

    Raises:
        FreqFormerError: the name, split, path, classes or limit is wrong, or the files are.
        MissingExtra: the data set needs a library that is not installed.
    """
    name = _known(name)
    whole = "train" if split in _PARTS else {"validation": "val"}.get(split, split)
    if whole not in (own := splits_of(name)) and not name.startswith("hf:"):
        raise FreqFormerError(f"unknown split {split!r}: {name} has {', '.join((*own, *_PARTS))}")
    if limit is not None and limit < 1:
        raise FreqFormerError(f"the number of images to train on must be at least 1, not {limit}")
    opener = _ON_DISK.get(name)
    if name.startswith("hf:"):
        images = open_hub(name, None if path is None else _existing(name, path), whole)
    else:
        images = opener(name, _existing(name, path), whole) if opener else _open_digits(whole)
    if split in _PARTS:
        images = _part(name, images, split)
    if classes is not None:
        images = _follow(images, list(classes), fewer=opener in _MAY_LACK_CLASSES)
    if limit is not None and limit < len(images):
        chosen = balanced_order(images.targets)[:limit]
        images = _choose(images, chosen)
    return images


def splits_of(name: str) -> tuple[str, ...]:
    """The splits that a data set has by itself, beside the divisions of "train"; Hugging Face's may have more."""
    opener = _ON_DISK.get(name)
    if opener is open_folders:
        return "train", "val", "test"
    return VTAB_SPLITS if opener is open_vtab else FGVC_SPLITS if opener is open_fgvc else ("train", "val")


def sweep_splits(name: str, path: str | Path | None = None) -> SweepSplits:
    """Which splits of a data set settings are tuned on, and which the best ones are trained and reported on.

    Args:
        name: see `open_images`.
        path: see `open_images`; with it an FGVC folder counts by the JSON files that it has.

    Returns:
        VTAB's and FGVC's own splits; of Hugging Face those that are there, in VTAB's names or as train, validation
        and test; for others "train80" and "train20", then "train" and "val".

    Raises:
        FreqFormerError: an unknown name, or a data set of Hugging Face that cannot be loaded.
        MissingExtra: the library ``datasets`` is not installed.
    """
    name = _known(name)
    if name.startswith("hf:"):
        own = set(hub_splits(name, None if path is None else _existing(name, path)))
        if {"train800", "val200", "test"} <= own:
            return _VTAB
        return _THREE if {"train", "test"} <= own and own & set(VALIDATION) else _DIVIDED
    opener = _ON_DISK.get(name)
    if opener is open_vtab:
        return _VTAB
    if opener is open_fgvc:
        held_out = [] if path is None else [_existing(name, path) / f"{split}.json" for split in ("val", "test")]
        return _THREE if all(file.is_file() for file in held_out) else _DIVIDED
    return _DIVIDED


def _known(name: str) -> str:
    """A data set's name as the table has it."""
    name = str(name)
    bare = name.removeprefix("vtab:")
    if name.startswith("hf:") and name != "hf:NAME":
        return name
    if bare in (VTAB_TASKS if name != bare else DATA_SETS[:-1]):
        return bare
    near = [] if name != bare else difflib.get_close_matches(name.upper(), DATA_SETS, 1)
    near += difflib.get_close_matches(bare.lower(), VTAB_TASKS, 1)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise FreqFormerError(f"unknown data set {name!r}: {hint}choose one of {', '.join(DATA_SETS)}")


def _part(name: str, images: Images, part: str) -> Images:
    """Four fifths of a training split, or the fifth that is left; of each class as many as its share, to one image."""
    shuffled = np.random.RandomState(0).permutation(len(images))
    by_class = shuffled[np.argsort(images.targets[shuffled], kind="stable")]
    if len(images) < 5:
        raise FreqFormerError(f"{name}: {len(images)} training images are too few to divide; at least 5 are needed")
    fifth = np.arange(len(images)) % 5 == 4
    return _choose(images, np.sort(by_class[fifth if part == "train20" else ~fifth]))


def _choose(images: Images, chosen: np.ndarray) -> Images:
    return replace(images, targets=images.targets[chosen], rows=images.rows[chosen])


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
    places = places_among(images.classes, classes, fewer=fewer)
    return replace(images, classes=classes, targets=places[images.targets])


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
