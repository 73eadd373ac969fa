"""Images that lie in files of their own: a split is a list of paths."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from freqformer.data.images import Images, decode
from freqformer.errors import FreqFormerError


def open_files(classes: list[str], paths: Sequence[str], targets: Sequence[int], root: Path) -> Images:
    """Open image files by their paths.

    Args:
        classes: label names in the order of the targets.
        paths: one for each image.
        targets: one for each image, in 0..len(classes) - 1.
        root: the folder that holds them, which tells one lost image from a lost disk.

    Returns:
        The images in the order of the paths; none is looked at before it is asked for.
    """
    blob, ends = pack_paths(paths)
    return Images(
        classes=classes,
        targets=np.array(targets, dtype=np.int64),
        rows=np.arange(len(paths)),
        read=partial(_read, blob, ends),
        identify=partial(path_at, blob, ends),
        root=str(root),
    )


def require_some(name: str, root: Path, paths: Sequence[str]) -> None:
    """Refuse a list of images none of whose first hundred exists: it belongs to another folder.

    Args:
        name: the data set's name, for the error.
        root: the folder, for the error.
        paths: the images' paths.

    Raises:
        FreqFormerError: naming the first path.
    """
    if not paths:
        raise FreqFormerError(f"{name}: {root} lists no images; check --data-path")
    if not any(map(os.path.exists, paths[:100])):
        raise FreqFormerError(f"{name}: none of the listed images is there, the first is {paths[0]}; check --data-path")


def pack_paths(paths: Sequence[str]) -> tuple[bytes, np.ndarray]:
    """Put paths one after the other: their bytes, and where each begins and ends, int64 (N + 1,)."""
    # A million str objects would be copied page by page into every worker as their reference counts change.
    encoded = [os.fsencode(path) for path in paths]
    return b"".join(encoded), np.cumsum([0, *map(len, encoded)])


def path_at(blob: bytes, ends: np.ndarray, row: int) -> str:
    """Return one of the paths that `pack_paths` packed."""
    return os.fsdecode(blob[ends[row] : ends[row + 1]])


def _read(blob: bytes, ends: np.ndarray, row: int) -> Image.Image:
    path = path_at(blob, ends, row)
    return decode(path, path)
