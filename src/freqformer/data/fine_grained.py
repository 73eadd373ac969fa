"""The small data sets of the papers' transfer tables in their authors' layouts: cars, flowers, pets."""

from pathlib import Path
from typing import Any

import numpy as np

from freqformer.data.files import open_files, require_some
from freqformer.data.folders import open_folders
from freqformer.data.images import Images
from freqformer.errors import FreqFormerError, MissingExtra


def open_cars(name: str, root: Path, split: str) -> Images:
    """Open one split of Stanford Cars: 8,144 images to train on, 8,041 to test.

    Args:
        name: the data set's name, for errors.
        root: the folder ``stanford_cars`` of torchvision's layout or the one above it, or the folder of the
            authors' single archive (``cars_annos.mat`` and ``car_ims``), which GFNet's script reads.
        split: "train" or "val" (the authors' test set).

    Returns:
        The images in the annotations' order.

    Raises:
        FreqFormerError: a file is missing or damaged.
        MissingExtra: SciPy is not installed.
    """
    base = _base(name, root, "stanford_cars", ("devkit/cars_meta.mat", "cars_annos.mat"))
    single = base / "cars_annos.mat"
    if single.is_file():
        content = _read_mat(single, "annotations", "class_names")
        annotations = content["annotations"]
        annotations = annotations[annotations["test"].astype(int) == (split == "val")]
        files = [base / str(path) for path in annotations["relative_im_path"]]
    else:
        content = _read_mat(base / "devkit/cars_meta.mat", "class_names")
        listed = base / ("devkit/cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat")
        if not listed.is_file():  # Where the authors' kit was unpacked as it is.
            listed = base / "devkit" / listed.name
        annotations = _read_mat(listed, "annotations")["annotations"]
        files = [
            base / ("cars_train" if split == "train" else "cars_test") / str(file) for file in annotations["fname"]
        ]
    classes = [str(label) for label in content["class_names"]]
    return _open(name, base, classes, files, [int(number) - 1 for number in annotations["class"]])


def open_flowers(name: str, root: Path, split: str) -> Images:
    """Open one split of Oxford Flowers-102: as the papers do, the authors' train and validation sets train.

    Args:
        name: the data set's name, for errors.
        root: the folder ``flowers-102`` of torchvision's layout or the one above it, or a folder of ``train`` and
            ``test`` with a folder for each class, which GFNet's script reads.
        split: "train" (2,040 images) or "val" (the authors' test set, 6,149 images).

    Returns:
        The images in the order of the authors' lists, or of the folders.

    Raises:
        FreqFormerError: a file is missing or damaged.
        MissingExtra: SciPy is not installed.
    """
    from torchvision.datasets import Flowers102

    if (root / "train").is_dir() and (root / "test").is_dir():
        return open_folders(name, root, "train" if split == "train" else "test")
    base = _base(name, root, "flowers-102", ("imagelabels.mat",))
    sets = _read_mat(base / "setid.mat", "trnid", "valid", "tstid")
    numbers = np.concatenate([sets["trnid"], sets["valid"]]) if split == "train" else sets["tstid"]
    labels = _read_mat(base / "imagelabels.mat", "labels")["labels"]
    if numbers.min() < 1 or numbers.max() > len(labels):
        raise FreqFormerError(f"{base / 'setid.mat'} does not fit imagelabels.mat; download both again")
    files = [base / "jpg" / f"image_{number:05d}.jpg" for number in numbers]
    return _open(name, base, list(Flowers102.classes), files, [int(labels[number - 1]) - 1 for number in numbers])


def open_pets(name: str, root: Path, split: str) -> Images:
    """Open one split of the Oxford-IIIT Pets: 3,680 images to train on, 3,669 to test, 37 breeds.

    Args:
        name: the data set's name, for errors.
        root: the folder ``oxford-iiit-pet`` of torchvision's layout or the one above it.
        split: "train" (the authors' trainval) or "val" (their test set).

    Returns:
        The images in the order of the authors' lists.

    Raises:
        FreqFormerError: a list is missing or damaged.
    """
    base = _base(name, root, "oxford-iiit-pet", ("annotations/trainval.txt", "annotations/test.txt"))
    lists = {part: _read_pets(base / "annotations" / f"{part}.txt") for part in ("trainval", "test")}
    breeds = {target: stem.rpartition("_")[0] for rows in lists.values() for stem, target in rows}
    classes = [breeds.get(target, "").replace("_", " ").title() for target in range(max(breeds) + 1)]
    rows = lists["trainval" if split == "train" else "test"]
    return _open(name, base, classes, [base / "images" / f"{stem}.jpg" for stem, _ in rows], [t for _, t in rows])


def _read_pets(path: Path) -> list[tuple[str, int]]:
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip() and line[0] != "#"]
        rows = [(words[0], int(words[1]) - 1) for words in lines]
    except OSError as error:
        raise FreqFormerError(f"cannot read {path}: {error.strerror}; unpack the annotations again") from error
    except (ValueError, IndexError):
        rows = []
    if not rows or min(target for _, target in rows) < 0:
        raise FreqFormerError(f"{path} is not a list of names and classes; unpack the annotations again")
    return rows


def _base(name: str, root: Path, folder: str, marks: tuple[str, ...]) -> Path:
    """The data set's own folder: the root, or below it the one that torchvision makes."""
    for base in (root, root / folder):
        if any((base / mark).is_file() for mark in marks):
            return base
    raise FreqFormerError(f"{name}: neither {root} nor {root / folder} has {' or '.join(marks)}; check --data-path")


def _open(name: str, base: Path, classes: list[str], files: list[Path], targets: list[int]) -> Images:
    paths = [str(file) for file in files]
    require_some(name, base, paths)
    if not 0 <= min(targets) <= max(targets) < len(classes):
        raise FreqFormerError(
            f"{name}: {base} has labels from {min(targets) + 1} to {max(targets) + 1} for {len(classes)} classes; "
            "download its annotations again"
        )
    return open_files(classes, paths, targets, base)


def _read_mat(path: Path, *names: str) -> dict[str, Any]:
    """The named variables of a MATLAB file, each of one dimension."""
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise MissingExtra("scipy", "train") from error
    try:
        content = loadmat(path, squeeze_me=True)
        return {name: np.atleast_1d(content[name]) for name in names}
    except OSError as error:
        raise FreqFormerError(f"cannot read {path}: {error.strerror or error}; download it again") from error
    except KeyError as error:
        raise FreqFormerError(f"{path} has no variable {error}; download it again") from error
    except Exception as error:  # A damaged file raises nearly anything.
        raise FreqFormerError(f"{path} is damaged or no MATLAB file; download it again") from error
