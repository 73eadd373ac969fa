"""Data sets whose splits are JSON files: iNaturalist's competitions, and the FGVC splits of VPT and FreqFit."""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from freqformer.data.files import open_files, require_some
from freqformer.data.images import Images
from freqformer.errors import FreqFormerError


def open_inaturalist(name: str, root: Path, split: str) -> Images:
    """Open one split of iNaturalist 2018 or 2019.

    Its archives hold both splits in one tree; ``train2018.json`` and ``val2018.json`` tell them apart. Classes are
    the species of the training split, in the order of the competition's numbers.

    Args:
        name: "INAT" (2018) or "INAT19".
        root: the folder of the JSON files. The images are below it where these say (``train_val2018/...``), in
            torchvision's folder ``2018``, or, as DeiT and GFNet have it, without the folder of the kingdom.
        split: "train" or "val".

    Returns:
        The images in the JSON file's order.

    Raises:
        FreqFormerError: a file is missing or damaged.
    """
    year = "2019" if name == "INAT19" else "2018"
    if not (root / f"train{year}.json").is_file() and (root.parent / f"train{year}.json").is_file():
        root = root.parent  # Torchvision's folder of the year itself.
    train = _read(name, root / f"train{year}.json")
    content = train if split == "train" else _read(name, root / f"val{year}.json")
    try:
        numbers = sorted({int(annotation["category_id"]) for annotation in train["annotations"]})
        target_of = {number: target for target, number in enumerate(numbers)}
        label = {annotation["image_id"]: int(annotation["category_id"]) for annotation in content["annotations"]}
        files = [(str(image["file_name"]), label[image["id"]]) for image in content["images"]]
        classes = _species(name, root, train, numbers)
        targets = [target_of[number] for _, number in files]
    except (KeyError, TypeError, ValueError) as error:
        raise FreqFormerError(
            f"{name}: {root} has JSON files of another form ({type(error).__name__}: {error}); download them again"
        ) from error
    places = [
        lambda file: f"{root}/{file}",
        lambda file: f"{root}/{year}/{_without(file, 0)}",
        lambda file: f"{root}/{_without(file, 1)}",
    ]
    paths = _placed(name, root, [file for file, _ in files], places)
    return open_files(classes, paths, targets, root)


def _without(file: str, place: int) -> str:
    """A relative path without one of its folders."""
    parts = file.split("/")
    return "/".join(parts[:place] + parts[place + 1 :])


def _species(name: str, root: Path, train: dict[str, Any], numbers: list[int]) -> list[str]:
    """The classes' names; their numbers where they have none, or two have one."""
    own = root / "categories.json"
    categories = _read(name, own) if own.is_file() else train.get("categories", [])
    names = {int(category["id"]): str(category["name"]) for category in categories}
    species = [names.get(number, str(number)) for number in numbers]
    return species if len(set(species)) == len(species) else [str(number) for number in numbers]


FGVC_SPLITS = ("train", "val", "trainval", "test")


def open_fgvc(name: str, root: Path, split: str) -> Images:
    """Open one split of an FGVC data set (CUB, NABirds, Flowers, Dogs, Cars) as VPT and FreqFit list them.

    ``train.json``, ``val.json`` and ``test.json`` are each an object of an image's path and its class's number.
    Classes are the training split's numbers in order, and are called by them.

    Args:
        name: the data set's name, for errors.
        root: the folder of the JSON files; paths are relative to it, or to its ``images`` or ``Images``.
        split: "train" or "test"; "val" is ``val.json``, or ``test.json`` where there is none; "trainval" is
            ``train.json`` followed by ``val.json``.

    Returns:
        The images in the JSON files' order.

    Raises:
        FreqFormerError: a file is missing or damaged, or a class is not in the training split.
    """
    parts = ["train", "val"] if split == "trainval" else [split]
    if split == "val" and not (root / "val.json").is_file():
        parts = ["test"]
    files = [root / f"{part}.json" for part in parts]
    contents = [_paths_and_numbers(name, file) for file in files]
    train = root / "train.json"
    numbering = _paths_and_numbers(name, train) if train.is_file() else contents[0]
    target_of = {number: target for target, number in enumerate(sorted(set(numbering.values())))}
    for file, content in zip(files, contents, strict=True):
        if unknown := [number for number in content.values() if number not in target_of]:
            raise FreqFormerError(f"{name}: {file} has the class {unknown[0]}, which {train} has not")
    rows = [row for content in contents for row in content.items()]
    folders = [root, root / "images", root / "Images"]
    paths = _placed(name, root, [path for path, _ in rows], [partial(os.path.join, folder) for folder in folders])
    return open_files([str(number) for number in target_of], paths, [target_of[number] for _, number in rows], root)


def _paths_and_numbers(name: str, file: Path) -> dict[str, int]:
    content = _read(name, file)
    if not (isinstance(content, dict) and content and all(type(number) is int for number in content.values())):
        raise FreqFormerError(f"{name}: {file} must be an object of image paths and class numbers")
    return content


def _placed(name: str, root: Path, files: list[str], places: Sequence[Callable[[str], str]]) -> list[str]:
    """The files' paths by the first of several ways to place them that finds some."""
    for place in places:
        if any(os.path.exists(place(file)) for file in files[:100]):
            return [place(file) for file in files]
    paths = [places[0](file) for file in files]
    require_some(name, root, paths)
    return paths


def _read(name: str, file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise FreqFormerError(f"{name}: there is no {file}; check --data-path") from error
    except (OSError, ValueError) as error:
        raise FreqFormerError(f"{name}: cannot read {file}: {error}; download it again") from error
