"""Hugging Face data sets: from the hub by name, or from a local folder."""

import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from freqformer.data.images import Images, UnreadableImage, decode
from freqformer.errors import FreqFormerError, MissingExtra

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

VALIDATION = ("validation", "val", "valid")
"""What data sets call their validation split."""

# The first of these that is there.
_SPLITS = {"train": ("train", "train800val200"), "val": (*VALIDATION, "test")}
# Where there is no such split, the first of each of these that is there, one after the other.
_THOUSAND = (("train800",), ("val200",))
_JOINED = {"train": _THOUSAND, "train800val200": _THOUSAND, "trainval": (("train",), VALIDATION)}
_USUAL = ("image", "img", "label", "labels", "fine_label")


def open_hub(name: str, root: Path | None, split: str) -> Images:
    """Open one split of a Hugging Face data set.

    Args:
        name: "hf:" and a folder or the name of a data set on the hub, with "@" and a configuration where it has
            several; "hf:" alone takes ``root``. A folder is one of ``save_to_disk``, or of anything that
            ``datasets.load_dataset`` reads by itself (parquet files, class folders).
        root: the folder for "hf:" alone.
        split: "train"; "val" for the first of validation, val, valid and test that is there; "trainval" for train
            followed by validation; or any split's own name.

    Returns:
        The images in the data set's order; the image's column and the label's are found by their types.

    Raises:
        FreqFormerError: the data set cannot be loaded, or has not the splits or columns that are needed.
        MissingExtra: the library ``datasets`` is not installed.
    """
    _require_datasets()
    import datasets

    source, configuration = _source(name, root)
    part, table = _split(name, _load(source, configuration), split)
    image = _column(name, table, datasets.Image)
    label = _column(name, table, datasets.ClassLabel)
    targets = np.asarray(table.select_columns(label).with_format("numpy")[:][label], dtype=np.int64)
    classes = list(table.features[label].names)
    if len(targets) == 0 or targets.min() < 0 or targets.max() >= len(classes):
        raise FreqFormerError(f"{name}: some of the {len(targets)} images of the split {part} have no label")
    encoded = table.select_columns(image).cast_column(image, datasets.Image(decode=False))
    prefix = f"{Path(source).name}/{part}"
    return Images(
        classes=classes,
        targets=targets,
        rows=np.arange(len(targets)),
        read=partial(_read, encoded, image, prefix),
        identify=partial(_identify, encoded, image, prefix),
        root=source if os.path.isdir(source) else None,
    )


def hub_splits(name: str, root: Path | None) -> list[str]:
    """The splits' names of a Hugging Face data set, which is loaded for it; arguments and errors of `open_hub`."""
    _require_datasets()
    return list(_tables(_load(*_source(name, root))))


def _require_datasets() -> None:
    try:
        import datasets  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("datasets", "hub") from error


def _source(name: str, root: Path | None) -> tuple[str, str | None]:
    """The folder or the name on the hub, and the configuration."""
    source, _, configuration = name.removeprefix("hf:").partition("@")
    if not source:
        if root is None:
            raise FreqFormerError("hf: needs the name of a data set (hf:NAME), or a folder; give --data-path")
        source = str(root)
    if os.path.isdir(os.path.expanduser(source)):
        source = os.path.expanduser(source)
    return source, configuration or None


def _load(source: str, configuration: str | None) -> "Dataset | DatasetDict":
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    folder = Path(source)
    try:
        if any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder) if folder.is_dir() else source, configuration)
    except Exception as error:  # Of the library, of the hub's client, of what both call: it has no base class.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if folder.is_dir():
            raise FreqFormerError(f"cannot load the data set in {folder}: {reason}") from error
        raise FreqFormerError(
            f"cannot load hf:{source} from the Hugging Face hub: {reason} (check the name and the connection, or "
            "load it elsewhere, save_to_disk it and give that folder)"
        ) from error


def _split(name: str, loaded: "Dataset | DatasetDict", split: str) -> tuple[str, "Dataset"]:
    from datasets import concatenate_datasets

    tables = _tables(loaded)
    choices = _SPLITS.get(split, (split,))
    if here := [wanted for wanted in choices if wanted in tables]:
        return here[0], tables[here[0]]
    parts = [next((part for part in parts if part in tables), None) for parts in _JOINED.get(split, ())]
    if parts and None not in parts:
        return split, concatenate_datasets([tables[str(part)] for part in parts])
    raise FreqFormerError(f"{name}: there is no split {' or '.join(choices)}, but {_listed(tables)}")


def _tables(loaded: "Dataset | DatasetDict") -> dict[str, "Dataset"]:
    splits: dict[Any, Any] = dict(loaded) if isinstance(loaded, dict) else {loaded.split: loaded}
    return {str(split): table for split, table in splits.items()}


def _column(name: str, table: "Dataset", kind: type) -> str:
    found = [column for column, feature in table.features.items() if isinstance(feature, kind)]
    # Of several, such as CIFAR-100's fine and coarse labels, the one of a usual name.
    usual = [column for column in _USUAL if column in found]
    if len(found) != 1 and not usual:
        have = _listed(f"{column} ({type(feature).__name__})" for column, feature in table.features.items())
        what = "no column" if not found else f"{len(found)} columns"
        raise FreqFormerError(f"{name}: {what} of the type {kind.__name__} among {have}; one is needed")
    return usual[0] if usual else found[0]


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "nothing"


def _identify(table: "Dataset", column: str, prefix: str, row: int) -> str:
    return _name((table[row][column] or {}).get("path"), prefix, row)


def _read(table: "Dataset", column: str, prefix: str, row: int) -> Image.Image:
    try:
        cell = table[row][column] or {}
    except Exception as error:  # A damaged or vanished Arrow file raises nearly anything.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{prefix}/{row:06d}", reason) from error
    name = _name(cell.get("path"), prefix, row)
    source = cell.get("bytes") or cell.get("path")
    if not source:
        raise UnreadableImage(name, "it is empty (0 bytes)")
    return decode(source, name)


def _name(path: str | None, prefix: str, row: int) -> str:
    """The image's file, where it has one of its own."""
    return path if path and os.path.isabs(path) else f"{prefix}/{row:06d}"
