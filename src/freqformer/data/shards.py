"""Tar shards of ``KEY.jpg`` + ``KEY.cls``: indexed once, read by offset, never extracted as named files."""

import gzip
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from freqformer.data.images import Images, UnreadableImage, decode
from freqformer.errors import FreqFormerError

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_Index = dict[str, np.ndarray]


def cache_folder() -> Path:
    """Return the folder for derived files: $FREQFORMER_CACHE, else freqformer in the user's cache folder."""
    if own := os.environ.get("FREQFORMER_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "freqformer"


def open_wds(name: str, root: Path, split: str) -> Images:
    """Open one split of WebDataset shards: tar files of ``KEY.jpg`` (or .jpeg, .png, .webp) and ``KEY.cls``.

    Args:
        name: the data set's name, for errors.
        root: the folder of the shards, as ``find_shards`` looks for them, and of ``classes.txt``, which names a class
            a line; without it the classes are the numbers up to the largest label of both splits.
        split: "train" or "val".

    Returns:
        The images in the shards' order.

    Raises:
        FreqFormerError: no shards, damaged ones, or labels without a class.
    """
    shards = find_shards(root, split)
    if not shards:
        raise FreqFormerError(
            f"{name}: {root} has no {split} shards (*.tar, *.tar.gz) with {' or '.join(_WORDS[split][0])} in their "
            "names; check --data-path"
        )
    classes = read_classes(root / "classes.txt")
    if classes is None:
        both = [*shards, *find_shards(root, "val" if split == "train" else "train")]
        classes = [str(target) for target in range(1 + max(index["label"].max() for _, index in _open_all(both)))]
    return open_shards(shards, classes, split)


def read_classes(file: Path) -> list[str] | None:
    """Read a file of class names, one a line; None where there is no file."""
    if not file.is_file():
        return None
    return [line.strip() for line in file.read_text("utf-8").split("\n") if line.strip()]


# Words of a shard's name that tell its split; the later ones count where no shard has an earlier one.
_WORDS: dict[str, list[tuple[str, ...]]] = {
    "train": [("train", "training")],
    "val": [("val", "valid", "validation"), ("test",)],
}


def find_shards(root: Path, split: str) -> list[Path]:
    """List a split's shards in the order of their names.

    Args:
        root: the folder they lie in, with the split as a word of their names, or the folder of folders that have
            such a name themselves.
        split: "train", or "val" for names with ``val``, ``valid`` or ``validation``, or else ``test``.

    Returns:
        Paths of .tar, .tar.gz and .tgz files; of a shard that is there in two forms, the plain one.
    """
    for words in _WORDS[split]:
        shards: dict[Path, Path] = {}
        for suffix in (".tar", ".tar.gz", ".tgz"):
            for path in [*root.glob(f"*{suffix}"), *root.glob(f"*/*{suffix}")]:
                # A shard of the root is told by its own name, one further below by its folder's.
                told = path.name.removesuffix(suffix) if path.parent == root else path.parent.name
                if set(re.split(r"[^a-z]+", told.lower())) & set(words):
                    shards.setdefault(path.with_name(path.name.removesuffix(suffix)), path)
        if shards:
            return [shards[stem] for stem in sorted(shards)]
    return []


def open_shards(shards: list[Path], classes: list[str], prefix: str) -> Images:
    """Open the shards of one split, unpacking and indexing them into the cache folder on first use.

    Args:
        shards: paths, as ``find_shards`` lists them.
        classes: label names in the order of the targets.
        prefix: what an image's name begins with, before its key.

    Returns:
        The images in the shards' order.

    Raises:
        FreqFormerError: a shard is damaged or incomplete, or the cache folder cannot be written.
    """
    opened = _open_all(shards)
    joined = {key: np.concatenate([index[key] for _, index in opened]) for key in opened[0][1]}
    low, high = joined["label"].min(), joined["label"].max()
    if low < 0 or high >= len(classes):
        raise FreqFormerError(
            f"{shards[0].parent} has labels from {low} to {high}, not 0 to {len(classes) - 1}; "
            "check the data set's name and --data-path"
        )
    files = [str(plain) for plain, _ in opened]
    shard = np.repeat(np.arange(len(opened)), [len(index["key"]) for _, index in opened])
    return Images(
        classes=classes,
        targets=joined["label"],
        rows=np.arange(len(shard)),
        read=partial(_read, files, shard, joined["offset"], joined["size"], joined["key"], prefix),
        identify=partial(_identify, joined["key"], prefix),
        root=str(opened[0][0].parent),
    )


def _open_all(shards: list[Path]) -> list[tuple[Path, _Index]]:
    """The plain tar and the index of each shard."""
    progress = tqdm(shards, "indexing", unit=" shards", disable=None, delay=2, leave=False)
    return [_open_shard(path) for path in progress]


def _identify(keys: np.ndarray, prefix: str, row: int) -> str:
    return f"{prefix}/{os.fsdecode(keys[row])}"


def _read(
    files: list[str],
    shard: np.ndarray,
    offsets: np.ndarray,
    sizes: np.ndarray,
    keys: np.ndarray,
    prefix: str,
    row: int,
) -> Image.Image:
    name = _identify(keys, prefix, row)
    try:
        # Opened anew for each image: a kept handle would share its position between forked workers.
        with open(files[shard[row]], "rb") as stream:
            stream.seek(offsets[row])
            content = stream.read(sizes[row])
    except OSError as error:
        raise UnreadableImage(name, f"{files[shard[row]]}: {error.strerror or error}") from error
    return decode(content, name)


def _open_shard(path: Path) -> tuple[Path, _Index]:
    """Return the plain tar of a shard and its index."""
    stat = path.stat()
    identity = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    stem = f"{path.name.split('.')[0]}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    cache = cache_folder()
    plain, index = path, cache / f"{stem}.npz"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".tar":
            plain = cache / f"{stem}.tar"
            if not plain.exists():
                _write(plain, partial(_unpack, path))
        if not index.exists():
            arrays = _index(plain, path)
            _write(index, lambda stream: np.savez(stream, allow_pickle=False, **arrays))
        with np.load(index) as stored:
            return plain, dict(stored)
    except OSError as error:
        reason = error.strerror or error
        raise FreqFormerError(
            f"cannot keep {path.name} in the cache folder {cache}: {reason}; set FREQFORMER_CACHE to another"
        ) from error


def _write(target: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Let a file appear whole or not at all, whoever else is writing it."""
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f"{target.stem}-", delete=False) as stream:
        try:
            fill(stream)  # type: ignore[arg-type]
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(stream.name, target)
        except BaseException:
            os.unlink(stream.name)
            raise


def _unpack(path: Path, stream: BinaryIO) -> None:
    try:
        with gzip.open(path) as packed:
            shutil.copyfileobj(packed, stream, 1 << 20)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FreqFormerError(f"the shard {path} is damaged: {error}; copy it again") from error


def _index(plain: Path, path: Path) -> _Index:
    """Find every sample of a plain tar; ``path`` is the shard as the user knows it."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with open(plain, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                key, _, suffix = member.name.removeprefix("./").rpartition(".")
                # A link or a device has no contents of its own, and what it names is not followed. A sparse file's
                # contents are not where tarfile says that they begin.
                if not member.isreg() or member.issparse():
                    continue
                if suffix.lower() in _IMAGE_SUFFIXES:
                    images[key] = (member.offset_data, member.size)
                elif suffix.lower() == "cls" and (content := tar.extractfile(member)):
                    labels[key] = int(content.read())
            # tarfile takes an archive that was cut between two members for a whole one.
            stream.seek(-512, os.SEEK_END)
            if stream.read().strip(b"\0"):
                raise tarfile.ReadError("its end is missing")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise FreqFormerError(f"the shard {path} is damaged: {error}; copy it again") from error
    if not images:
        raise FreqFormerError(f"the shard {path} holds no images; copy it again")
    if unpaired := sorted(images.keys() ^ labels.keys()):
        raise FreqFormerError(
            f"the shard {path} has no pair of image and .cls for {unpaired[0]!r} ({len(unpaired)} such); write it again"
        )
    return {
        "key": np.array([os.fsencode(key) for key in images]),
        "offset": np.array([offset for offset, _ in images.values()], dtype=np.int64),
        "size": np.array([size for _, size in images.values()], dtype=np.int64),
        "label": np.array([labels[key] for key in images], dtype=np.int64),
    }
