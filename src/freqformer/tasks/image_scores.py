"""Scores of a single image, by which the best and the worst predictions of an evaluation are chosen."""

import torch
from torch import Tensor
from torchvision.ops import box_iou


def f1_of_boxes(found: Tensor, labels: Tensor, boxes: Tensor, true: Tensor, crowd: Tensor) -> float | None:
    """F1 of an image's detections: twice the right ones over the detections and the objects together.

    A detection is right when an object of its class overlaps it by an IoU of 0.5 and is not yet taken by one before
    it. One that lies by half in a crowd of its class and is not right does not count, nor do crowds.

    Args:
        found: (N, 4) as x1, y1, x2, y2, the most certain first.
        labels: (N,).
        boxes: (M, 4), of the objects.
        true: (M,), their labels.
        crowd: bool (M,), which of them are crowds.

    Returns:
        0 to 1; None where nothing is there and nothing was found.
    """
    objects = ~crowd
    same = labels[:, None] == true
    overlaps = box_iou(found, boxes) * same
    free, right, counted = objects.clone(), 0, len(found)
    for number in range(len(found)):
        here = overlaps[number] * free
        if len(here) and here.max() >= 0.5:
            free[here.argmax()] = False
            right += 1
        elif _share_inside(found[number], boxes[crowd & same[number]]) >= 0.5:
            counted -= 1
    together = counted + int(objects.sum())
    return 2 * right / together if together else None


def _share_inside(box: Tensor, crowds: Tensor) -> float:
    """How much of a box lies in one of the crowds."""
    if len(crowds) == 0:
        return 0.0
    corner, far = torch.maximum(box[:2], crowds[:, :2]), torch.minimum(box[2:], crowds[:, 2:])
    area = (box[2:] - box[:2]).prod().clamp(min=1e-9)
    return float(((far - corner).clamp(min=0).prod(1) / area).max())


def miou_of_counts(counts: Tensor) -> float | None:
    """The mean intersection over union of the classes that an image's mask has.

    Args:
        counts: pixels (K, K), rows are true classes, columns predicted ones.

    Returns:
        0 to 1; None where no pixel counts.
    """
    counts = counts.double()
    right, true = counts.diagonal(), counts.sum(1)
    union = true + counts.sum(0) - right
    return float((right / union)[true > 0].mean()) if true.any() else None
