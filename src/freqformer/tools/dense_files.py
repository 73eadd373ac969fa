"""What detectors and segmenters find in image files, written into a folder."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..checkpoints import write_whole
from ..data import UnreadableImage, colour_mask, decode, overlay, printable
from ..dense import load_dense
from ..errors import FreqFormerError
from ..tables import write_json
from ..tasks import require
from ..tasks.coco_scores import run_lengths
from ..tasks.dense_pictures import class_colours, draw_instances
from ..visualize.features import Progress
from .dense import Found, detect, segment
from .predict import find_images

DETECTIONS = "detections.json"
CLASSES = "classes.json"
_MASK, _OVERLAY = ".png", "_overlay.png"

Skip = Callable[[UnreadableImage], object]


def detect_files(
    model_path: str | Path,
    images: Sequence[str | Path],
    output_dir: str | Path,
    *,
    score_thr: float | None = None,
    max_dets: int | None = None,
    batch_size: int = 4,
    overwrite: bool = False,
    skip: Skip,
    progress: Progress = iter,
) -> Iterator[dict[str, Any]]:
    """Find objects in image files, draw them, and write ``detections.json``.

    Args:
        model_path: a run's folder, or a ``.ckpt`` or ``.safetensors`` file.
        images: files, and folders of images.
        output_dir: a folder for a picture of each image and ``detections.json``; pictures have the images' names, with
            a number behind where several images share one.
        score_thr, max_dets, batch_size: see `detect`.
        overwrite: replace the files of an earlier prediction.
        skip: is told of each image that cannot be read.
        progress: passes on batches.

    Yields:
        For each image that can be read a dict of ``image`` and ``picture`` (paths), and ``detections``: dicts of
        ``file_name``, ``category_id`` (as in the annotations), ``category``, ``score``, ``bbox`` (left, top, width and
        height in pixels) and, of a detector that finds masks, ``segmentation`` (COCO's run lengths), best first.

    Raises:
        FreqFormerError: a wrong setting, an unusable checkpoint, a missing image, or a file that would be lost.
    """
    require(score_thr is None or 0 <= score_thr <= 1, "--score-thr", "between 0 and 1", score_thr)
    require(max_dets is None or max_dets >= 1, "--max-dets", "at least 1", max_dets)
    require(batch_size >= 1, "--batch-size", "at least 1", batch_size)
    paths = list(find_images(images))
    model, about = load_dense(model_path, "detection")
    folder = Path(output_dir)
    stems = _prepare(folder, paths, (_MASK,), DETECTIONS, overwrite=overwrite)
    ids = dict(zip(model.label_names, about["category_ids"], strict=True))
    colours = class_colours(model.label_names)
    written: list[dict[str, Any]] = []
    for batch in _readable(paths, batch_size, skip, progress):
        pictures = [image for _, image in batch]
        every = detect(model, pictures, score_thr=score_thr, max_dets=max_dets, batch_size=len(batch))
        for (place, image), found in zip(batch, every, strict=True):
            target = folder / (stems[place] + _MASK)
            drawn = draw_instances(image, found.boxes, found.labels, found.scores, found.masks, colours=colours)
            _save(drawn, target)
            rows = _rows(str(paths[place]), found, ids)
            written += rows
            yield {"image": str(paths[place]), "picture": str(target), "detections": rows}
    write_json(folder / DETECTIONS, written)


def segment_files(
    model_path: str | Path,
    images: Sequence[str | Path],
    output_dir: str | Path,
    *,
    shorter_side: int | None = None,
    test_mode: str | None = None,
    overwrite: bool = False,
    skip: Skip,
    progress: Progress = iter,
) -> Iterator[dict[str, Any]]:
    """Give the pixels of image files classes, and write masks, overlays and ``classes.json``.

    Args:
        model_path: a run's folder, or a ``.ckpt`` or ``.safetensors`` file.
        images: files, and folders of images.
        output_dir: a folder for a mask and an overlay of each image, named as `detect_files` names pictures, and
            ``classes.json``, the classes' names in the order of the masks' values.
        shorter_side, test_mode: see `segment`.
        overwrite: replace the files of an earlier prediction.
        skip: is told of each image that cannot be read.
        progress: passes on batches.

    Yields:
        For each image that can be read a dict of ``image``, ``mask`` and ``overlay`` (paths), and ``shares``: of the
        pixels by class, the largest first.

    Raises:
        FreqFormerError: a wrong setting, an unusable checkpoint, a missing image, or a file that would be lost.
    """
    require(test_mode in (None, "whole", "slide"), "--test-mode", "whole or slide", test_mode)
    require(shorter_side is None or shorter_side >= 1, "--shorter-side", "at least 1", shorter_side)
    paths = list(find_images(images))
    model, about = load_dense(model_path, "segmentation")
    folder = Path(output_dir)
    stems = _prepare(folder, paths, (_MASK, _OVERLAY), CLASSES, overwrite=overwrite)
    palette = np.array(about["palette"], dtype=np.uint8)
    for ((place, image),) in _readable(paths, 1, skip, progress):
        (mask,) = segment(
            model,
            image,
            shorter_side=about["shorter_side"] if shorter_side is None else shorter_side,
            test_mode=test_mode or about["test_mode"],
            window=about["window"],
        )
        classes = mask.cpu().numpy()
        target, beside = (folder / (stems[place] + ending) for ending in (_MASK, _OVERLAY))
        _save(colour_mask(classes, palette), target)
        _save(Image.fromarray(overlay(np.asarray(image), classes, palette)), beside)
        shares = np.bincount(classes.ravel(), minlength=len(model.label_names)) / classes.size
        found = {model.label_names[i]: round(float(shares[i]), 4) for i in np.argsort(-shares) if shares[i] > 0}
        yield {"image": str(paths[place]), "mask": str(target), "overlay": str(beside), "shares": found}
    write_json(folder / CLASSES, model.label_names)


def _rows(name: str, found: Found, ids: dict[str, int]) -> list[dict[str, Any]]:
    """The objects of an image as plain containers."""
    rows = []
    for place, (label, score) in enumerate(zip(found.labels, found.scores.tolist(), strict=True)):
        left, top, right, bottom = found.boxes[place].tolist()
        row = {"file_name": name, "category_id": ids[label], "category": label, "score": round(score, 6)}
        row["bbox"] = [round(side, 2) for side in (left, top, right - left, bottom - top)]
        if found.masks is not None:
            row["segmentation"] = run_lengths(found.masks[place])
        rows.append(row)
    return rows


def _readable(
    paths: Sequence[Path], batch_size: int, skip: Skip, progress: Progress
) -> Iterator[list[tuple[int, Image.Image]]]:
    """Batches of those images that can be read, each with its place among the paths."""
    for batch in progress([range(len(paths))[i : i + batch_size] for i in range(0, len(paths), batch_size)]):
        images = []
        for place in batch:
            try:
                images.append((place, decode(paths[place], str(paths[place]))))
            except UnreadableImage as error:
                skip(error)
        if images:
            yield images


def _prepare(
    folder: Path, paths: Sequence[Path], endings: Sequence[str], summary: str, *, overwrite: bool
) -> list[str]:
    """Make the folder, and name the files of each image; refuse before anything is written what would be lost."""
    stems = _stems(paths, endings)
    targets = [folder / summary, *(folder / (stem + ending) for stem in stems for ending in endings)]
    present = [target for target in targets if target.exists()]
    if present and not overwrite:
        raise FreqFormerError(
            f"{printable(str(present[0]))} is there already: choose another --output-dir, or say --overwrite"
        )
    inputs = {path.resolve() for path in paths} if present else set()
    if lost := [target for target in present if target.resolve() in inputs]:
        raise FreqFormerError(
            f"{printable(str(lost[0]))} is one of the images and would be written over: choose another --output-dir"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FreqFormerError(f"cannot make {folder}: {error.strerror}; choose another --output-dir") from error
    return stems


def _stems(paths: Sequence[Path], endings: Sequence[str]) -> list[str]:
    """Names of new files after images that may lie in several folders; no two files have the same."""
    given: set[str] = set()
    stems = []
    for path in paths:
        stem, number = path.stem, 1
        while any(stem + ending in given for ending in endings):
            number += 1
            stem = f"{path.stem}-{number}"
        given |= {stem + ending for ending in endings}
        stems.append(stem)
    return stems


def _save(picture: Image.Image, target: Path) -> None:
    write_whole(target, partial(picture.save, format="PNG"))
