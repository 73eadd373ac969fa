"""Instance masks in COCO's three forms: checked without being decoded, and decoded.

A segmentation is a list of polygons, each ``[x0, y0, x1, y1, ...]`` in pixels, or runs of pixels that are in turn
outside and inside, down the columns: ``{"size": [H, W], "counts": ...}`` with the runs' lengths in a list, or packed
in a string as COCO's own programs write it.
"""

import pickle
from typing import Any, NamedTuple

import numpy as np

from freqformer.errors import MissingExtra

# Lengths above would be of more pixels than an image can have.
_DIGITS = 7
# Coordinates above are no pixels'; squares of them are still exact.
_FARTHEST = 1e6


class Outline(NamedTuple):
    """A segmentation of sound form, packed.

    Args:
        packed: see `unpack`.
        size: (H, W) where it says so, or None.
        reach: the largest absolute coordinate in pixels, 0 of runs.
        mended: parts of it were left out, being no polygons.
    """

    packed: bytes
    size: tuple[int, int] | None
    reach: float
    mended: bool


def outline(segmentation: Any) -> Outline | str:
    """Check a segmentation as the JSON file has it, and pack it.

    Args:
        segmentation: polygons or runs.

    Returns:
        The packed one, or, where it is unusable, why: a phrase that can be counted.
    """
    if segmentation is None or segmentation == [] or segmentation == {}:
        return "without a segmentation"
    if isinstance(segmentation, dict):
        return _runs_outline(segmentation)
    if not isinstance(segmentation, list):
        return "with a segmentation of no known form"
    # Some programs leave out the outer list where there is one polygon.
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    if not all(isinstance(polygon, list) and _numbers(polygon) for polygon in polygons):
        return "with a segmentation of no known form"
    sound = [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
    if not sound:
        return "with polygons of fewer than 3 points"
    reach = max(max(max(polygon), -min(polygon)) for polygon in sound)
    # A sum is NaN if any of its terms is, which a maximum need not be.
    if not (reach < _FARTHEST and np.isfinite(sum(map(sum, sound)))):
        return "with polygons that are not finite"
    return Outline(pickle.dumps(sound, 5), None, float(reach), len(sound) < len(polygons))


def unpack(packed: bytes) -> Any:
    """Return a packed segmentation as the file had it."""
    return pickle.loads(packed)


def decode_masks(segmentations: list[Any], size: tuple[int, int]) -> np.ndarray:
    """Draw segmentations that `outline` found sound.

    Args:
        segmentations: N of them.
        size: (H, W) of the image.

    Returns:
        uint8 (N, H, W), 1 inside. Of polygons the same pixels as pycocotools'.

    Raises:
        MissingExtra: faster-coco-eval is not installed, and there are polygons.
    """
    height, width = size
    masks = np.empty((len(segmentations), height, width), dtype=np.uint8)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        runs = _runs(as_runs(segmentation, size)["counts"])
        assert runs is not None
        inside = np.arange(len(runs), dtype=np.uint8) & 1
        mask[:] = np.repeat(inside, runs).reshape(width, height).T
    return masks


def as_runs(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Return polygons as runs, and runs as they are; arguments and errors as of `decode_masks`."""
    return segmentation if isinstance(segmentation, dict) else _library().segmToRle(segmentation, size[1], size[0])


def mask_area(segmentation: Any, size: tuple[int, int]) -> int:
    """Count the pixels of a segmentation; arguments and errors as of `decode_masks`."""
    runs = _runs(as_runs(segmentation, size)["counts"])
    assert runs is not None
    return int(runs[1::2].sum())


def mask_box(segmentation: Any, size: tuple[int, int]) -> list[float] | None:
    """Return the smallest box [x, y, width, height] around a segmentation, or None where it holds no pixel.

    Args and errors as of `decode_masks`.
    """
    library = _library()
    box = [float(side) for side in library.toBbox(library.segmToRle(segmentation, size[1], size[0]))]
    return box if box[2] > 0 and box[3] > 0 else None


def require_library() -> None:
    """Raise MissingExtra where polygons could not be drawn."""
    _library()


def _library() -> Any:
    try:
        from faster_coco_eval.core import mask
    except ModuleNotFoundError as error:
        raise MissingExtra("faster-coco-eval", "dense") from error
    return mask


def _numbers(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int, float}


def _runs_outline(segmentation: dict[str, Any]) -> Outline | str:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        return "with a run-length mask of no size"
    runs = _runs(counts)
    if runs is None or int(runs.sum()) != size[0] * size[1]:
        return "with a damaged run-length mask"
    return Outline(pickle.dumps({"size": size, "counts": counts}, 5), (size[0], size[1]), 0.0, False)


def _runs(counts: Any) -> np.ndarray | None:
    """The lengths of runs, int64 (K,), or None where they are damaged."""
    if isinstance(counts, list):
        lengths = [int(count) for count in counts if type(count) is int and 0 <= count < 1 << 40]
        return np.array(lengths, dtype=np.int64) if lengths and len(lengths) == len(counts) else None
    if isinstance(counts, str) and counts.isascii():
        counts = counts.encode("ascii")
    if not (isinstance(counts, bytes) and counts):
        return None
    # Five bits of a number in each character from "0" on, the lowest first; a sixth bit says that more follow.
    digits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    last = (digits & 32) == 0
    if digits.min() < 0 or digits.max() > 63 or not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths_of_numbers = ends + 1 - starts
    if lengths_of_numbers.max() > _DIGITS:
        return None
    places = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths_of_numbers))
    numbers = np.add.reduceat((digits & 31) << places, starts)
    # The highest bit is the sign.
    numbers -= ((digits[ends] & 16) != 0) * (np.int64(1) << (5 * lengths_of_numbers))
    # From the fourth on a number is the difference to the one two before.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers if numbers.min() >= 0 else None
