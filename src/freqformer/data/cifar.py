"""CIFAR-10 and CIFAR-100: the authors' Python archives, unpacked or not, or tar shards of encoded images."""

import io
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from freqformer.data.images import Images, identify_number, read_array
from freqformer.data.shards import find_shards, open_shards, read_classes
from freqformer.errors import FreqFormerError


@dataclass(frozen=True)
class _Layout:
    folder: str
    archive: str
    files: dict[str, list[str]]
    labels: str
    meta: str
    names: str
    count: int


_LAYOUTS = {
    "CIFAR10": _Layout(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        files={"train": [f"data_batch_{i}" for i in range(1, 6)], "val": ["test_batch"]},
        labels="labels",
        meta="batches.meta",
        names="label_names",
        count=10,
    ),
    "CIFAR100": _Layout(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        files={"train": ["train"], "val": ["test"]},
        labels="fine_labels",
        meta="meta",
        names="fine_label_names",
        count=100,
    ),
}
_CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def open_cifar(name: str, root: Path, split: str) -> Images:
    """Open one split of CIFAR10 or CIFAR100 where it lies.

    Args:
        name: "CIFAR10" or "CIFAR100".
        root: the folder that holds the authors' folder, the authors' archive or tar shards.
        split: "train" or "val" (the authors' test set).

    Returns:
        The images in the files' order.

    Raises:
        FreqFormerError: nothing of the kind is there, or a file is damaged or holds foreign objects.
    """
    layout = _LAYOUTS[name]
    prefix = f"{name.lower()}/{'train' if split == 'train' else 'test'}"
    wanted = [*layout.files[split], layout.meta]
    if (root / layout.folder).is_dir():
        return _from_pickles(layout, prefix, split, _folder_files(root / layout.folder, wanted))
    if (root / layout.archive).is_file():
        return _from_pickles(layout, prefix, split, _archive_files(root / layout.archive, layout, wanted))
    if shards := find_shards(root, split):
        return open_shards(shards, _shard_classes(name, root, layout.count), prefix)
    raise FreqFormerError(
        f"{name}: {root} has neither {layout.folder}, {layout.archive} nor {split} shards (*.tar, *.tar.gz); "
        "check --data-path"
    )


def _shard_classes(name: str, root: Path, count: int) -> list[str]:
    file = root / "classes.txt"
    classes = read_classes(file)
    if classes is None and name == "CIFAR10":
        return _CIFAR10_NAMES
    if classes is None or len(classes) != count:
        raise FreqFormerError(f"{name}: {file} names {len(classes or [])} classes, not {count}; write one a line")
    return classes


def _folder_files(folder: Path, wanted: list[str]) -> dict[str, bytes]:
    if missing := [file for file in wanted if not (folder / file).is_file()]:
        raise FreqFormerError(f"{folder} lacks {missing[0]}; unpack the archive again")
    return {str(folder / file): (folder / file).read_bytes() for file in wanted}


def _archive_files(archive: Path, layout: _Layout, wanted: list[str]) -> dict[str, bytes]:
    found = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                file = member.name.removeprefix("./").removeprefix(f"{layout.folder}/")
                # Not links: tarfile would follow one to another member.
                if file in wanted and member.isreg() and (stream := tar.extractfile(member)):
                    found[file] = stream.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise FreqFormerError(f"cannot read {archive}: {error}; download it again") from error
    if missing := [file for file in wanted if file not in found]:
        raise FreqFormerError(f"{archive} lacks {missing[0]}; download it again")
    return {f"{archive}:{file}": found[file] for file in wanted}


def _from_pickles(layout: _Layout, prefix: str, split: str, files: dict[str, bytes]) -> Images:
    *batches, meta = (_unpickle(content, where) for where, content in files.items())
    *places, meta_place = files
    pixels, labels = [], []
    for where, batch in zip(places, batches, strict=True):
        data, targets = batch.get("data"), batch.get(layout.labels)
        if (
            not (isinstance(data, np.ndarray) and isinstance(targets, list))
            or data.dtype != np.uint8
            or data.shape != (len(targets), 3072)
            or not all(isinstance(target, int) and 0 <= target < layout.count for target in targets)
        ):
            raise FreqFormerError(f"{where} is not a CIFAR batch of {layout.count} classes; download it again")
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += targets
    names = meta.get(layout.names)
    if not isinstance(names, list) or len(names) != layout.count:
        raise FreqFormerError(f"{meta_place} does not name {layout.count} classes; download it again")
    return Images(
        classes=[_text(name) for name in names],
        targets=np.array(labels, dtype=np.int64),
        rows=np.arange(len(labels)),
        read=partial(read_array, np.concatenate(pixels)),
        identify=partial(identify_number, prefix),
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes are encoded as {encoding}")
    return text.encode("latin1")


# Python 2's and 3's pickles name the same few objects; nothing else may be called while reading one.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return _ALLOWED[module, name]


def _unpickle(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # A damaged pickle raises nearly anything.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FreqFormerError(f"refused to read {where}: {reason}; download it again") from error
    if not isinstance(value, dict):
        raise FreqFormerError(f"{where} is not a CIFAR file; download it again")
    return {_text(key): item for key, item in value.items()}
