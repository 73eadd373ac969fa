"""Images that lie in files of their own: a split is a list of paths."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from freqformer.data.images import Images, decode
from freqformer.errors import FreqFormerError


@dataclass(frozen=True)
class Packed:
    """A sequence of byte strings in one.

    A million objects would be copied page by page into every worker as their reference counts change.

    Args:
        blob: all of them in a row.
        ends: int64 (N + 1,), where each begins, and the last ends.
    """

    blob: bytes
    ends: np.ndarray

    @classmethod
    def of(cls, strings: Iterable[bytes]) -> "Packed":
        """Pack byte strings."""
        strings = list(strings)
        return cls(b"".join(strings), np.cumsum([0, *map(len, strings)]))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row: int) -> bytes:
        return self.blob[self.ends[row] : self.ends[row + 1]]


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
    packed = pack_paths(paths)
    return Images(
        classes=classes,
        targets=np.array(targets, dtype=np.int64),
        rows=np.arange(len(paths)),
        read=partial(_read, packed),
        identify=partial(path_at, packed),
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


def pack_paths(paths: Iterable[str]) -> Packed:
    """Put paths one after the other."""
    return Packed.of(map(os.fsencode, paths))


def path_at(paths: Packed, row: int) -> str:
    """Return one of the paths that `pack_paths` packed."""
    return os.fsdecode(paths[row])


def _read(paths: Packed, row: int) -> Image.Image:
    path = path_at(paths, row)
    return decode(path, path)
