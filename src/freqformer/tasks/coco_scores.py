"""Detections as rows of COCO's result format, and COCO's scores of such rows."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as rle
from torch import Tensor

from ..checkpoints import write_whole
from ..errors import FreqFormerError

_PREFIXES = {"bbox": "", "segm": "mask_"}


def results_of(
    image_id: int, detection: dict[str, Tensor], category_ids: Sequence[int], *, masks: bool
) -> list[dict[str, object]]:
    """Turn the detections of one image into plain rows of COCO's result format.

    What is scored should be these rows, since boxes are rounded to hundredths of a pixel and scores to six decimals.

    Args:
        image_id: the image's id in the ground truth.
        detection: as torchvision's: ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels of the original image, ``scores``
            (N,), ``labels`` (N,) from 0, and ``masks``, (N, 1, H, W) in 0..1 or bool (N, H, W).
        category_ids: the category id of each label.
        masks: write the masks too, as compressed run lengths.

    Returns:
        One row per detection, in their order.

    Raises:
        FreqFormerError: a box or a score is not finite.
    """
    corners, scores = detection["boxes"].double().cpu(), detection["scores"].double().cpu()
    if not (corners.isfinite().all() and scores.isfinite().all()):
        raise FreqFormerError(f"image {image_id}: a predicted box or score is not finite; the weights have diverged")
    corners[:, 2:] -= corners[:, :2]
    rows: list[dict[str, object]] = [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(side, 2) for side in box],
            "score": round(score, 6),
        }
        for box, score, label in zip(corners.tolist(), scores.tolist(), detection["labels"].tolist(), strict=True)
    ]
    if masks:
        for row, mask in zip(rows, detection["masks"], strict=True):
            row["segmentation"] = run_lengths(mask)
    return rows


def results_for(results: Sequence[dict], kind: str) -> list[dict]:
    """Keep what COCO's result file of one kind holds.

    A file of masks has no boxes: pycocotools would take the sizes of the masks (small, medium, large) from them.

    Args:
        results: rows of ``results_of``.
        kind: ``bbox`` or ``segm``.

    Returns:
        New rows in the same order.
    """
    left_out = "segmentation" if kind == "bbox" else "bbox"
    return [{name: value for name, value in row.items() if name != left_out} for row in results]


def write_results(path: Path, results: Sequence[dict]) -> None:
    """Write rows of COCO's result format as JSON, whole or not at all.

    Args:
        path: the file to write.
        results: rows of ``results_of`` or ``results_for``.

    Raises:
        FreqFormerError: the file cannot be written.
    """
    write_whole(path, lambda aside: aside.write_text(json.dumps(results, allow_nan=False)))


def coco_scores(
    ground_truth: dict, results: Sequence[dict], kinds: Sequence[str] = ("bbox",), *, max_dets: int = 100
) -> dict[str, float]:
    """Score detections as COCO does.

    Args:
        ground_truth: the content of a COCO annotation file: ``images``, ``annotations``, ``categories``.
        results: rows of COCO's result format.
        kinds: ``bbox``, ``segm`` or both.
        max_dets: how many detections of an image and class count, the best first. COCO's own number is 100.

    Returns:
        In 0..1: AP, AP50, AP75, APs, APm, APl, AR, ARs, ARm, ARl of the boxes, and those of the masks with the prefix
        ``mask_``; nan where the ground truth holds no object (of that size).

    Raises:
        FreqFormerError: a result belongs to no image of the ground truth, or an object without a mask is asked for
            scores of masks.
    """
    return coco_report(ground_truth, results, kinds, max_dets=max_dets)[0]


def coco_report(
    ground_truth: dict, results: Sequence[dict], kinds: Sequence[str] = ("bbox",), *, max_dets: int = 100
) -> tuple[dict[str, float], list[dict[str, str | int | float]]]:
    """Score detections as ``coco_scores`` does, together and class by class.

    Args:
        ground_truth: as for ``coco_scores``.
        results: as for ``coco_scores``.
        kinds: as for ``coco_scores``.
        max_dets: as for ``coco_scores``.

    Returns:
        The scores, and for each category in the order of the ids a row of ``name``, ``images`` that hold it,
        ``instances`` (crowds apart), ``AP``, ``AP50``, and ``mask_AP``, ``mask_AP50`` for the masks.

    Raises:
        FreqFormerError: as ``coco_scores``.
    """
    known = {image["id"] for image in ground_truth["images"]}
    for row in results:
        if row["image_id"] not in known:
            raise FreqFormerError(f"a result is of image {row['image_id']}, which the ground truth does not list")
    annotations = [row for row in ground_truth["annotations"] if row["image_id"] in known]
    classes = _classes(ground_truth["categories"], annotations)
    scores: dict[str, float] = {}
    for kind in kinds:
        precision, recall = _evaluate({**ground_truth, "annotations": annotations}, results, kind, max_dets)
        prefix = _PREFIXES[kind]
        tables = {"AP": precision[..., 0], "AP50": precision[0, ..., 0], "AP75": precision[5, ..., 0]}
        tables |= {f"AP{size}": precision[..., area] for area, size in enumerate("sml", start=1)}
        tables |= {"AR": recall[..., 0]} | {f"AR{size}": recall[..., area] for area, size in enumerate("sml", start=1)}
        scores |= {f"{prefix}{name}": _mean(table) for name, table in tables.items()}
        for number, row in enumerate(classes):
            row[f"{prefix}AP"] = _mean(precision[:, :, number, 0])
            row[f"{prefix}AP50"] = _mean(precision[0, :, number, 0])
    return scores, classes


def run_lengths(mask: Tensor) -> dict[str, object]:
    """One mask, (H, W) or (1, H, W), bool or in 0..1, as COCO's compressed run lengths."""
    inside = (mask > 0.5).cpu().numpy()
    height, width = inside.shape[-2:]
    code = rle.encode(np.asfortranarray(inside.reshape(height, width), dtype=np.uint8))
    return {"size": [height, width], "counts": code["counts"].decode("ascii")}


def _classes(categories: Sequence[dict], annotations: Sequence[dict]) -> list[dict[str, str | int | float]]:
    images: dict[int, set] = {category["id"]: set() for category in categories}
    instances = dict.fromkeys(images, 0)
    for row in annotations:
        if row["category_id"] in images and not row.get("iscrowd", 0):
            images[row["category_id"]].add(row["image_id"])
            instances[row["category_id"]] += 1
    names = {category["id"]: str(category["name"]) for category in categories}
    return [{"name": names[id], "images": len(images[id]), "instances": instances[id]} for id in sorted(names)]


def _evaluate(ground_truth: dict, results: Sequence[dict], kind: str, max_dets: int) -> tuple[np.ndarray, np.ndarray]:
    """COCO's tables for one kind: precision (10 thresholds, 101 recalls, K classes, 4 sizes), recall (10, K, 4)."""
    # The library writes into what it is given, and takes an annotation's id 0 for "not matched".
    annotations = [_complete(row, kind) | {"id": id} for id, row in enumerate(ground_truth["annotations"], start=1)]
    truth = COCO({**ground_truth, "annotations": annotations})
    evaluation = COCOeval_faster(truth, truth.loadRes(results_for(results, kind)), kind)
    evaluation.params.maxDets = [max_dets]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]


def _complete(row: dict, kind: str) -> dict:
    if kind == "segm" and not row.get("segmentation"):
        raise FreqFormerError(f"annotation {row.get('id')} has no mask: masks cannot be scored on this ground truth")
    return {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0} | row


def _mean(table: np.ndarray) -> float:
    # COCO writes -1 where there is nothing to find.
    table = table[table > -1]
    return float(table.mean()) if table.size else float("nan")
