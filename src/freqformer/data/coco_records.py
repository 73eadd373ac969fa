"""What an annotation file in COCO's format says, record by record, and which of it is usable."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from freqformer.data.images import upright_size
from freqformer.data.run_lengths import Outline, mask_box, outline, unpack
from freqformer.errors import FreqFormerError

# What is above, in pixels, is a slip of whoever wrote the file: the side of an image, the coordinate of a box.
_LONGEST_SIDE = 1 << 17
_LARGEST = 1e9
# Files give hundredths of pixels.
_ROUNDING = 0.01


class Record(NamedTuple):
    """One annotation as the file has it; anything may be anything but the outline."""

    image_id: Any
    category_id: Any
    box: Any
    area: Any
    crowd: Any
    outline: Outline | str


class Records(NamedTuple):
    """What a file says.

    Args:
        ids: of the images.
        files: the images' paths.
        sizes: int64 (N, 2), (H, W) of the images, (0, 0) where the file does not say it.
        categories: names by ids, sorted by ids.
        annotations: all of them, sound or not; one that is no object at all is None.
    """

    ids: list[int | str]
    files: list[str]
    sizes: np.ndarray
    categories: dict[int, str]
    annotations: list[Record | None]


class Table(NamedTuple):
    """The usable annotations: each one's image, label, box [x, y, w, h], area (NaN if not given), crowd and mask."""

    rows: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    packed: list[bytes]


def read_records(file: Path, problems: Counter[str], *, masks: bool) -> Records:
    """Read an annotation file.

    Args:
        file: the JSON file.
        problems: where images that are dropped or mended are counted.
        masks: keep the segmentations; otherwise only those of annotations that have no box.

    Returns:
        Its records.

    Raises:
        FreqFormerError: it is not JSON, or of another form; or two images, or two categories, have one id.
    """
    # The polygons of COCO are tens of millions of numbers: each annotation is packed as soon as it is parsed.
    with tqdm(desc=f"reading {file.name}", unit=" annotations", disable=None, delay=2, leave=False) as bar:

        def packed(record: dict[str, Any]) -> Any:
            if "image_id" not in record:
                return record
            bar.update()
            box = record.get("bbox")
            drawn = outline(record.get("segmentation")) if masks or not box else ""
            ids = record["image_id"], record.get("category_id")
            return Record(*ids, box, record.get("area"), record.get("iscrowd", 0), drawn)

        try:
            content = json.loads(file.read_text("utf-8-sig"), object_hook=packed)
        except (OSError, ValueError, RecursionError) as error:
            raise FreqFormerError(f"cannot read {file} as JSON: {error}") from error
    if not isinstance(content, dict):
        raise FreqFormerError(f"{file} is not in COCO's format: it must be an object, not {_kind(content)}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            has = f"{key!r} is {_kind(content[key])}" if key in content else f"it has no {key!r}"
            raise FreqFormerError(f"{file} is not in COCO's format: {has}, which must be a list")
    ids, files, sizes = _images(file, content["images"], problems)
    annotations = [record if isinstance(record, Record) else None for record in content["annotations"]]
    return Records(ids, files, sizes, _categories(file, content["categories"]), annotations)


def fill_sizes(root: str, files: list[str], sizes: np.ndarray, problems: Counter[str]) -> None:
    """Read those sizes from the images that the annotation file does not say.

    Args:
        root: the folder of the images.
        files: see `Records`.
        sizes: see `Records`; they are changed.
        problems: where they are counted.
    """
    unknown = np.flatnonzero(sizes[:, 0] == 0)
    for i in tqdm(unknown, "reading sizes", unit=" images", disable=None, delay=2, leave=False):
        sizes[i] = upright_size(os.path.join(root, files[i])) or (0, 0)
    if len(unknown):
        problems["images without width and height (taken from the image)"] = len(unknown)


def usable(records: Records, label_of: Mapping[int, int], problems: Counter[str], *, masks: bool) -> Table:
    """Sort out the annotations that can be used.

    Args:
        records: the file's, with the images' sizes.
        label_of: the label of each category that has one.
        problems: where the others are counted.
        masks: they must have masks.

    Returns:
        The usable ones in the file's order.
    """
    row_of = {number: row for row, number in enumerate(records.ids)}
    found: list[tuple[int, int, list[float], Record]] = []
    progress = tqdm(records.annotations, "checking", unit=" annotations", disable=None, delay=2, leave=False)
    for record in progress:
        sound = _sound(record, row_of, label_of, records.sizes, masks)
        if isinstance(sound, str):
            problems[sound] += 1
        else:
            found.append(sound)
    rows = np.array([row for row, *_ in found], dtype=np.int64)
    boxes = np.array([box for _, _, box, _ in found], dtype=np.float64).reshape(-1, 4)
    left, top, right, bottom = corners(boxes, records.sizes[rows]).T
    inside = (right > left) & (bottom > top)
    height, width = records.sizes[rows].T + _ROUNDING
    reaching = (boxes[:, :2] < -_ROUNDING).any(1) | (boxes[:, 0] + boxes[:, 2] > width)
    reaching = inside & (reaching | (boxes[:, 1] + boxes[:, 3] > height))
    for phrase, where in (
        ("boxes outside their image", ~inside),
        ("boxes that reach outside their image (cut there for training)", reaching),
    ):
        if where.any():
            problems[phrase] += int(where.sum())
    kept = np.flatnonzero(inside)
    last = [found[i][-1] for i in kept]
    mended = sum(isinstance(record.outline, Outline) and record.outline.mended for record in last)
    if mended and masks:
        problems["annotations with polygons of fewer than 3 points beside others (those left out)"] += mended
    return Table(
        rows=rows[kept],
        labels=np.array([label for _, label, *_ in found], dtype=np.int64)[kept],
        boxes=boxes[kept],
        areas=np.array([_area(record.area) for record in last], dtype=np.float64),
        crowd=np.array([record.crowd in (1, "1") for record in last], dtype=bool),
        packed=[record.outline.packed for record in last if isinstance(record.outline, Outline)] if masks else [],
    )


def corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Cut boxes to their images.

    Args:
        boxes: float64 (M, 4), left, top, width and height.
        sizes: (M, 2) or (1, 2), (H, W).

    Returns:
        float32 (M, 4), left, top, right and bottom; a box outside has no area.
    """
    limits = np.concatenate([sizes[:, ::-1], sizes[:, ::-1]], axis=1)
    both = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return np.clip(both, 0, limits).astype(np.float32)


def _sound(
    record: Record | None,
    row_of: Mapping[int | str, int],
    label_of: Mapping[int, int],
    sizes: np.ndarray,
    masks: bool,
) -> tuple[int, int, list[float], Record] | str:
    """An annotation's image, label and box, or what is wrong with it."""
    if record is None:
        return "annotations that name no image"
    row, label = _look_up(row_of, record.image_id), _look_up(label_of, record.category_id)
    if row is None:
        return "annotations of images that are not listed"
    if label is None:
        return "annotations of unknown categories"
    height, width = sizes[row].tolist()
    if not height:
        return "annotations of images of unknown size"
    no_box = record.box is None or record.box == []
    if masks or no_box:
        drawn = record.outline
        if isinstance(drawn, str):
            return f"annotations {drawn}"
        if drawn.size not in (None, (height, width)):
            return "annotations with a mask of another size than the image"
        # Drawing a polygon takes memory for every pixel that its edges pass.
        if drawn.reach > 10 * max(height, width):
            return "annotations with polygons far outside the image"
        box = mask_box(unpack(drawn.packed), (height, width)) if no_box else record.box
        if box is None:
            return "annotations with an empty mask"
    else:
        box = record.box
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        return "boxes that are not four finite numbers"
    return (row, label, box, record) if box[2] > 0 and box[3] > 0 else "boxes of zero or negative size"


def _look_up(table: Mapping[Any, int], key: Any) -> int | None:
    # Lists and objects cannot be looked up.
    return table.get(key) if isinstance(key, (int, float, str)) else None


def _is_number(value: Any) -> bool:
    # NaN is not below anything.
    return type(value) in (int, float) and abs(value) < _LARGEST


def _area(value: Any) -> float:
    return float(value) if _is_number(value) and value >= 0 else float("nan")


def _images(file: Path, images: list[Any], problems: Counter[str]) -> tuple[list[int | str], list[str], np.ndarray]:
    files: dict[int | str, str] = {}
    sizes: list[tuple[int, int]] = []
    number: Any
    name: Any
    for image in images:
        number, name = (image.get("id"), image.get("file_name")) if isinstance(image, dict) else (None, None)
        if type(number) not in (int, str) or not _is_path(name):
            problems["images without an id or a file name"] += 1
        elif number in files:
            if files[number] != name:
                raise FreqFormerError(
                    f"{file}: the image id {number!r} stands for both {files[number]!r} and {name!r}; number them apart"
                )
            problems["images listed twice"] += 1
        else:
            files[number] = name
            size = image.get("height"), image.get("width")
            sizes.append(size if all(type(side) is int and 0 < side < _LONGEST_SIDE for side in size) else (0, 0))
    if not files:
        what = f"none of its {len(images)} images has an id and a file name" if images else "it lists no images"
        raise FreqFormerError(f"{file}: {what}; check the file")
    return list(files), list(files.values()), np.array(sizes, dtype=np.int64)


def _is_path(name: Any) -> bool:
    if not (isinstance(name, str) and name and "\0" not in name):
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _categories(file: Path, categories: list[Any]) -> dict[int, str]:
    names: dict[int, str] = {}
    for category in categories:
        number, name = (category.get("id"), category.get("name")) if isinstance(category, dict) else (None, None)
        if type(number) is not int or not isinstance(name, str):
            raise FreqFormerError(f"{file}: a category needs an integer id and a name; one is {str(category)[:100]!r}")
        if names.setdefault(number, name) != name:
            raise FreqFormerError(
                f"{file}: the category id {number} stands for both {names[number]!r} and {name!r}; number them apart"
            )
    if not names:
        raise FreqFormerError(f"{file}: it lists no categories; check the file")
    repeated = {name for name, count in Counter(names.values()).items() if count > 1}
    return {number: f"{name} ({number})" if name in repeated else name for number, name in sorted(names.items())}


def _kind(value: Any) -> str:
    return {list: "a list", str: "a string", type(None): "null", dict: "an object"}.get(type(value), "a number")
