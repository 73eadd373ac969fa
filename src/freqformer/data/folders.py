"""Images in folders: ``ROOT/train/CLASS/...`` and ``ROOT/val/CLASS/...``."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from freqformer.data.images import Images, decode
from freqformer.errors import FreqFormerError

EXTENSIONS = {
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
}


def open_folders(name: str, root: Path, split: str) -> Images:
    """Open one split of a folder data set.

    A class's images may lie in subfolders and behind links; names that begin with a dot are passed over.
    Where ``train`` exists it sets the classes of ``val`` too, so that both splits number them alike.

    Args:
        name: the data set's name, for errors.
        root: the folder that holds ``train`` and ``val``.
        split: "train" or "val".

    Returns:
        The images, sorted by class and path; classes are the folders' names in sorted order.

    Raises:
        FreqFormerError: the split or a class's images are missing, or an image file is empty.
    """
    folder = root / split
    if not folder.is_dir():
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
        raise FreqFormerError(
            f"{name}: {root} has no folder {split!r} (it holds {found}); put the images in {split}/CLASS/"
        )
    own = _class_folders(folder)
    if not own:
        raise FreqFormerError(f"{name}: {folder} has no class folders; put the images in {split}/CLASS/")
    train = root / "train"
    classes = _class_folders(train) if train.is_dir() else own
    classes = classes or own
    if unknown := [c for c in own if c not in set(classes)]:
        raise FreqFormerError(
            f"{name}: the class folder {folder / unknown[0]} is not in {train}; rename it or add it there"
        )
    target_of = {c: target for target, c in enumerate(classes)}

    paths: list[str] = []
    targets: list[int] = []
    empty: list[str] = []
    for c in own:
        files = sorted(_image_files(folder / c))
        if not files:
            raise FreqFormerError(f"{name}: the class folder {folder / c} has no images; fill or delete it")
        paths += [path for path, _ in files]
        targets += [target_of[c]] * len(files)
        empty += [path for path, sound in files if not sound]
    if empty:
        raise FreqFormerError(
            f"{name}: {len(empty)} image files are empty (0 bytes) or broken links, the first is {empty[0]}; "
            "copy them again or delete them"
        )
    blob, ends = _pack(paths)
    return Images(
        classes=classes,
        targets=np.array(targets, dtype=np.int64),
        rows=np.arange(len(paths)),
        read=partial(_read, blob, ends),
        identify=partial(_path, blob, ends),
    )


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")


def _image_files(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[tuple[str, bool]]:
    """Yield (path, whether it has contents) of every image file below a folder."""
    real = os.path.realpath(folder)
    if real in above:  # A link to a folder above would never end.
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _image_files(Path(entry.path), above | {real})
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                yield entry.path, entry.is_file() and entry.stat().st_size > 0


def _pack(paths: list[str]) -> tuple[bytes, np.ndarray]:
    # A million str objects would be copied page by page into every worker as their reference counts change.
    encoded = [os.fsencode(path) for path in paths]
    return b"".join(encoded), np.cumsum([0, *map(len, encoded)])


def _path(blob: bytes, ends: np.ndarray, row: int) -> str:
    return os.fsdecode(blob[ends[row] : ends[row + 1]])


def _read(blob: bytes, ends: np.ndarray, row: int) -> Image.Image:
    path = _path(blob, ends, row)
    return decode(path, path)
