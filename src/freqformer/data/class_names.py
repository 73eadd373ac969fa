"""The classes' names and colours: files that list them, and one list brought into another's order."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from freqformer.errors import FreqFormerError

# Where a data set's folder may say what its classes are called, the first that is there.
_CLASS_FILES = (
    "classes.txt",
    "class_dict.csv",
    "classes.csv",
    "classes.json",
    "labels.txt",
    "label_colors.txt",
    "objectInfo150.txt",
)
_COLOUR = r"(\d+)[\s,;]+(\d+)[\s,;]+(\d+)"
_NAME_FIRST = re.compile(rf"(.*?)[\s,;]+{_COLOUR}")
_COLOUR_FIRST = re.compile(rf"{_COLOUR}[\s,;]+(.*)")


class ClassFile(NamedTuple):
    """What a class file says: the names in order, and their colours, uint8 (K, 3), where it has any."""

    names: list[str]
    colours: np.ndarray | None = None
    is_ade20k: bool = False


def find_class_file(root: Path) -> Path | None:
    """The class file that a data set's folder has under a usual name, such as classes.txt."""
    return next((root / name for name in _CLASS_FILES if (root / name).is_file()), None)


def read_class_file(path: str | Path) -> ClassFile:
    """Read the classes' names, and their colours if it has them.

    Args:
        path: a JSON list of names; a text with a name a line; lines or CSV ``name,r,g,b``, ``name r g b`` or
            ``r g b name``, with or without a header; or ADE20K's objectInfo150.txt.

    Returns:
        The classes in the file's order.

    Raises:
        FreqFormerError: the file cannot be read, mixes lines with and without colours, has an empty line between
            others, a colour outside of 0..255, or one name twice.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = _from_json(json.loads(text)) if path.suffix.lower() == ".json" else _from_lines(text, path.suffix)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FreqFormerError(f"cannot read the class file {path}: {reason}") from error
    if not found.names:
        raise FreqFormerError(f"the class file {path} names no class")
    if len(set(found.names)) < len(found.names):
        twice = next(name for i, name in enumerate(found.names) if name in found.names[:i])
        raise FreqFormerError(f"the class file {path} has the class {twice!r} twice; give each a name of its own")
    return found


def _from_json(content: object) -> ClassFile:
    if not isinstance(content, list) or not all(isinstance(name, str) and name.strip() for name in content):
        raise ValueError("it is not a JSON list of names")
    return ClassFile([name.strip() for name in content])


def _from_lines(text: str, suffix: str) -> ClassFile:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines:
        raise ValueError(f"line {lines.index('') + 1} is empty; the line's number is the class's")
    if lines and lines[0].startswith("Idx\t"):
        return _from_ade20k(lines[1:])
    coloured = [_NAME_FIRST.fullmatch(line) or _COLOUR_FIRST.fullmatch(line) for line in lines]
    if not any(coloured):
        header = suffix.lower() == ".csv" and lines and lines[0].lower() in ("name", "class", "label")
        return ClassFile([_unquoted(line) for line in lines[1 if header else 0 :]])
    first = 0 if coloured[0] else 1
    names, colours = [], []
    for number, match in enumerate(coloured[first:], first + 1):
        if match is None:
            raise ValueError(f"line {number} has no colour, as others have: {lines[number - 1]!r}")
        *colour, name = match.groups() if match.re is _COLOUR_FIRST else (*match.groups()[1:], match[1])
        colours.append([int(channel) for channel in colour])
        if max(colours[-1]) > 255:
            raise ValueError(f"line {number} has a colour outside of 0..255: {lines[number - 1]!r}")
        names.append(_unquoted(name))
    return ClassFile(names, np.array(colours, dtype=np.uint8))


def _from_ade20k(lines: list[str]) -> ClassFile:
    # Synonyms follow the first name: "building, edifice".
    synonyms = [line.split("\t")[-1].strip() for line in lines]
    names = [each.partition(",")[0] for each in synonyms]
    return ClassFile(names if len(set(names)) == len(names) else synonyms, is_ade20k=True)


def _unquoted(name: str) -> str:
    return name.strip().strip('"').strip()


def default_palette(count: int) -> np.ndarray:
    """Colours that are all different and none of them black, uint8 (count, 3), by the bit rule of PASCAL VOC.

    Args:
        count: at most 255.
    """
    # The bits of a class's number, three by three, become the highest bits of red, green and blue.
    numbers = np.arange(1, count + 1)
    bits = (numbers[:, None] >> np.arange(9)) & 1
    weights = np.array([128, 64, 32])
    return np.stack([bits[:, channel::3] @ weights for channel in range(3)], axis=1).astype(np.uint8)


def places_among(own: Sequence[str], classes: Sequence[str], *, fewer: bool = False) -> np.ndarray:
    """Which of other classes each class is: by name if all of them are there, otherwise in order.

    Args:
        own: a data set's classes.
        classes: those that its targets must follow, such as a checkpoint's.
        fewer: a data set may have some of them only, all known by name.

    Returns:
        The place of each in ``classes``, int64 (len(own),).

    Raises:
        FreqFormerError: their numbers differ.
    """
    # By number: names may repeat, as ImageNet's English ones do.
    by_name = list(own) != list(classes) and set(own) <= set(classes)
    if len(own) != len(classes) and not (fewer and by_name):
        raise FreqFormerError(
            f"class-count mismatch: the data has {len(own)} classes and the model {len(classes)}; "
            "use the data set that the model was trained on"
        )
    place_of = {name: place for place, name in enumerate(classes)}
    return np.array([place_of[name] for name in own] if by_name else range(len(own)), dtype=np.int64)
