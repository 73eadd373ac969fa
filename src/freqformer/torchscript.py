"""Read the tensors of a TorchScript archive (what ``torch.jit.save`` writes) without running anything in it."""

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_TENSOR = "torch._utils._rebuild_tensor_v2"
# Everything else that torch.jit.save names in a pickle, beside the archive's own classes.
_PLAIN = {
    _TENSOR,
    "collections.OrderedDict",
    "torch.device",
    *(f"torch.{name}" for name in _STORAGES),
    *(f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")),
    "torch.jit._pickle.restore_type_tag",
}


def is_torchscript(path: Path) -> bool:
    """Whether a file is a whole TorchScript archive."""
    if not is_zipfile(path):
        return False
    with ZipFile(path) as archive:
        # torch tells them from the archives of torch.save by this record too.
        return _folder(archive, "constants.pkl") is not None


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of the module in a TorchScript archive, by the dotted names of its attributes, on the CPU.

    Raises:
        pickle.UnpicklingError: it names a function or class that no such archive needs.
        Exception: of many kinds, where the archive is damaged.
    """
    with ZipFile(path) as archive:
        folder = _folder(archive, "data.pkl")
        if folder is None:
            raise pickle.UnpicklingError("the archive has no data.pkl")
        order = f"{folder}/byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise pickle.UnpicklingError("the archive is of a big-endian machine")
        return dict(_tensors(_Unpickler(archive, folder).load(), ""))


def _folder(archive: ZipFile, record: str) -> str | None:
    """The one folder that an archive of torch has, if it has this record."""
    return next((name.split("/")[0] for name in archive.namelist() if name.split("/")[1:] == [record]), None)


class _Record:
    """What stands for an object of the pickle, or for the call of a function: what it was given, and no more."""

    path = ""

    def __new__(cls, *arguments: Any) -> "_Record":
        record = super().__new__(cls)
        record.arguments = arguments
        record.state = {}
        return record

    arguments: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Makes a record of every object, and runs nothing."""

    def __init__(self, archive: ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}/data.pkl")))
        self.archive = archive
        self.folder = folder
        self.storages: dict[tuple[str, str], Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path not in _PLAIN and module.split(".")[0] != "__torch__":
            raise pickle.UnpicklingError(f"it asks for {path}")
        return type(name, (_Record,), {"path": path})

    def persistent_load(self, identity: Any) -> Tensor:
        _, storage, key, _device, _length = identity
        name = storage.path.removeprefix("torch.")
        if (key, name) not in self.storages:
            data = bytearray(self.archive.read(f"{self.folder}/data/{key}"))
            dtype = _STORAGES[name]
            # A buffer of no bytes is refused by torch.
            self.storages[key, name] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key, name]


def _tensors(module: _Record, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.state.items():
        if not isinstance(value, _Record):
            continue
        if value.path == _TENSOR:
            storage, offset, size, stride, *_ = value.arguments
            # Refuses places outside of the storage.
            yield prefix + name, torch.as_strided(storage, size, stride, offset)
        else:
            yield from _tensors(value, f"{prefix}{name}.")
