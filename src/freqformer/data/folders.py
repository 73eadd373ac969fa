"""Images in folders: ``ROOT/train/CLASS/...`` and ``ROOT/val/CLASS/...``."""

import os
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from freqformer.data.files import open_files
from freqformer.data.images import Images
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

    A class's images may lie in subfolders and behind links; names that begin with a dot are passed over. Files
    are known by their names alone: which of them cannot be read shows when they are.
    Where ``train`` exists it sets the classes of ``val`` too, so that both splits number them alike.

    Args:
        name: the data set's name, for errors.
        root: the folder that holds ``train`` and ``val``.
        split: the name of the split's folder: "train", "val" or, where the papers call it so, "test".

    Returns:
        The images, sorted by class and path; classes are the folders' names in sorted order.

    Raises:
        FreqFormerError: the split or a class's images are missing.
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
    for c in tqdm(own, f"listing {folder.name}", unit=" classes", disable=None, delay=2, leave=False):
        files = sorted(image_files(folder / c))
        if not files:
            raise FreqFormerError(f"{name}: the class folder {folder / c} has no images; fill or delete it")
        paths += files
        targets += [target_of[c]] * len(files)
    return open_files(classes, paths, targets, folder)


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")


def image_files(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield the path of every image file below a folder, broken links among them."""
    real = os.path.realpath(folder)
    if real in above:  # A link to a folder above would never end.
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # A link to itself makes entry.is_dir() raise.
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):
                yield from image_files(Path(entry.path), above | {real})
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                yield entry.path
