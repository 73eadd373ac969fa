"""Where the files of a data set in COCO's format lie."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from freqformer.errors import FreqFormerError

# A split's other names.
_WORDS = {
    "val": ("val", "valid", "validation"),
    "valid": ("valid", "val"),
    "validation": ("validation", "val", "valid"),
}
_ANNOTATIONS = (
    "annotations/instances_{}2017.json",
    "annotations/instances_{}.json",
    "instances_{}.json",
    "instances_{}2017.json",
    "{}/_annotations.coco.json",
)
_FOLDERS = ("{}2017", "images/{}2017", "images/{}", "{}")


def find_annotations(path: str | Path | None, split: str, annotations: str | Path | None) -> Path:
    """Find the JSON file of a split.

    Args:
        path: the data set's folder.
        split: "train", "val" or another word in the file's name.
        annotations: the file itself, if it is known.

    Returns:
        The file.

    Raises:
        FreqFormerError: it is not there; what was looked for is said.
    """
    if annotations is not None:
        file = Path(annotations).expanduser()
        if not file.is_file():
            raise FreqFormerError(f"there is no annotation file {file}; check the flag that names it")
        return file
    if path is None:
        raise FreqFormerError("the folder of the data set is not given: give --data-path, or the annotation files")
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise FreqFormerError(f"{root} {what}; check --data-path")
    words = _WORDS.get(split, (split,))
    candidates = [root / form.format(word) for word in words for form in _ANNOTATIONS]
    for file in candidates:
        if file.is_file():
            return file
    looked_for = ", ".join(form.format(split) for form in _ANNOTATIONS)
    raise FreqFormerError(f"{root} has no annotations of {split!r} (looked for {looked_for}); check --data-path")


def find_images(
    file: Path, path: str | Path | None, split: str, images: str | Path | None, names: Sequence[str]
) -> str:
    """Find the folder that a split's images lie in: the first in which some of the first hundred exist.

    Args:
        file: the annotation file.
        path: the data set's folder, if it is known.
        split: see `find_annotations`.
        images: the folder of the images or one above it, if it is known.
        names: the images' paths as the annotation file has them.

    Returns:
        The folder.

    Raises:
        FreqFormerError: no image is there; which folders were looked in is said.
    """
    if images is not None:
        bases = [Path(images).expanduser()]
    else:
        bases = [file.parent, file.parent.parent] if path is None else [Path(path).expanduser(), file.parent]
    forms = [form.format(word) for form in _FOLDERS for word in _WORDS.get(split, (split,))]
    candidates = [base / form for base in bases for form in (*forms, "images", "")]
    if images is not None:
        candidates.insert(0, candidates.pop())  # The folder itself before those below it.
    candidates = [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]
    for folder, name in itertools.product(candidates, names[:100]):
        if os.path.isfile(os.path.join(folder, name)):
            return str(folder)
    places = ", ".join(map(str, candidates)) or f"{bases[0]}, which is no folder"
    raise FreqFormerError(
        f"{file}: none of the listed images is there, the first is {names[0]!r} (looked in {places}); "
        "check --data-path or --images"
    )
