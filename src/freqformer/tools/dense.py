"""Find objects in images, and give their pixels classes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data import segmentation_eval_transform
from ..data.images import Source
from ..dense import Detector, Segmenter, load_dense
from ..tasks import require
from ..tasks.detection import as_it_is
from ..tasks.segmentation import TEST_MODES, segment_logits
from .predict import open_source


@dataclass(frozen=True)
class Found:
    """The objects of one image, best first."""

    image: str
    """The image's path, or ``image N`` for one in memory."""
    boxes: Tensor
    """(N, 4) as x1, y1, x2, y2 in pixels."""
    labels: list[str]
    scores: Tensor
    """(N,) in 0..1."""
    masks: Tensor | None
    """Bool (N, H, W), of a detector that finds masks."""


@torch.inference_mode()
def detect(
    model: Detector | str | Path,
    images: Source | Iterable[Source],
    *,
    score_thr: float | None = None,
    max_dets: int | None = None,
    batch_size: int = 4,
) -> Iterator[Found]:
    """Find objects in images.

    Args:
        model: a detector, or the path of its run or checkpoint.
        images: one image or several, of any sizes: paths, or PIL images.
        score_thr: leave out detections of smaller scores; by default the model's own threshold.
        max_dets: detections of an image at most; by default the model's own limit.
        batch_size: images per step.

    Yields:
        One `Found` an image, in their order.

    Raises:
        FreqFormerError: an unusable checkpoint, or an image that cannot be read.
    """
    net: Detector = load_dense(model, "detection")[0] if isinstance(model, (str, Path)) else model
    device = next(net.parameters()).device
    before = net.arguments["score_thr"], net.arguments["max_dets"], net.training
    count = 0
    net.eval()
    net.limit(score_thr, max_dets)
    try:
        sources = _several(images)
        while batch := list(islice(sources, batch_size)):
            pixels = [as_it_is(open_source(source))[0].to(device) for source in batch]
            for source, found in zip(batch, net(pixels), strict=True):
                name = f"image {count}" if isinstance(source, Image.Image) else str(source)
                labels = [net.label_names[label] for label in found["labels"].tolist()]
                masks = found["masks"][:, 0] > 0.5 if "masks" in found else None
                yield Found(name, found["boxes"], labels, found["scores"], masks)
                count += 1
    finally:
        net.limit(*before[:2])
        net.train(before[2])


@torch.inference_mode()
def segment(
    model: Segmenter | str | Path,
    images: Source | Iterable[Source],
    *,
    shorter_side: int | None = None,
    test_mode: str | None = None,
    window: tuple[int, int] | None = None,
) -> Iterator[Tensor]:
    """Give every pixel of images a class.

    Args:
        model: a segmenter, or the path of its run or checkpoint.
        images: one image or several, of any sizes: paths, or PIL images.
        shorter_side: resize images to this shorter side first; by default as the checkpoint says, or of a segmenter
            not at all.
        test_mode: ``"whole"``, or ``"slide"`` for windows that overlap by a third; by default as the checkpoint says,
            or whole.
        window: their height and width; by default those of the checkpoint, or 512.

    Yields:
        For each image the class of each of its pixels, uint8 (H, W).

    Raises:
        FreqFormerError: an unusable checkpoint, a setting out of its range, or an image that cannot be read.
    """
    net: Segmenter
    about: dict[str, Any] = {"shorter_side": None, "test_mode": "whole", "window": (512, 512)}
    if isinstance(model, (str, Path)):
        net, about = load_dense(model, "segmentation")
    else:
        net = model
    mode, sides = test_mode or about["test_mode"], window or about["window"]
    require(mode in TEST_MODES, "the mode of testing", "whole or slide", mode)
    resize = segmentation_eval_transform(about["shorter_side"] if shorter_side is None else shorter_side)
    device = next(net.parameters()).device
    was_training = net.training
    net.eval()
    try:
        for source in _several(images):
            image = open_source(source)
            size = (image.height, image.width)
            pixels, _ = resize(image, torch.zeros(size, dtype=torch.uint8))
            logits = segment_logits(net, pixels.to(device), size, mode, sides)
            yield logits.argmax(0).to(torch.uint8)
    finally:
        net.train(was_training)


def _several(images: Source | Iterable[Source]) -> Iterator[Source]:
    return iter([images] if isinstance(images, (str, Path, Image.Image)) else images)
