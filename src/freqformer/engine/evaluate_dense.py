"""Evaluate a detector's or a segmenter's checkpoint on a split, and write down what it found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.layers import to_2tuple

from ..data import AnnotatedSamples, open_instances, open_scenes, segmentation_eval_transform
from ..dense import load_dense
from ..tasks import Task, require, require_size
from ..tasks.dense import require_dense
from ..tasks.detection import Detection, DetectionConfig, evaluation_instances, require_objects, sides
from ..tasks.segmentation import TEST_MODES, Segmentation, SegmentationConfig
from ..visualize.frequencies import band_pass
from .evaluate import AnyEvaluation, evaluated
from .processes import together


@dataclass
class DenseEvaluation(AnyEvaluation):
    """What the evaluations of detectors and segmenters are told."""

    model_path: str
    """A run's folder, or a .ckpt or .safetensors file."""
    batch_size: int = 4
    """Images per process and step."""

    def check(self) -> None:
        """Refuse settings outside their range, and a folder that would lose something; raises FreqFormerError."""
        super().check()
        require_dense(self.strategy, self.precision)


@dataclass
class DetectionEvaluation(DenseEvaluation):
    """Which detector to evaluate, and on which images."""

    val_json: str | None = None
    """The split's annotations in COCO's format, where they lie in no usual place."""
    images: str | None = None
    """The folder that the annotations' file names begin at."""
    input_size: int | tuple[int, int] | None = None
    """Shorter side of the images in pixels, or [shorter side, longest side at most]; by default the checkpoint's."""
    score_thr: float | None = None
    """Detections of smaller scores are left out; by default the checkpoint's."""
    max_dets: int | None = None
    """Detections of an image at most; by default the checkpoint's."""


@dataclass
class SegmentationEvaluation(DenseEvaluation):
    """Which segmenter to evaluate, and on which images."""

    val_images: str | None = None
    """The folder of the images, where they lie in no usual place."""
    val_masks: str | None = None
    """The folder of their masks."""
    class_file: str | None = None
    """The classes' names, a line each, or with colours; by default classes.txt or its like in the data's folder."""
    ignore_index: int | None = 255
    """The value of mask pixels without a class."""
    shorter_side: int | None = None
    """Shorter side that images are resized to; by default the checkpoint's."""
    test_mode: str | None = None
    """whole, or slide (windows that overlap by a third); by default the checkpoint's."""
    input_size: int | tuple[int, int] | None = None
    """Side in pixels of the windows, or [height, width]; by default that of the crops in training."""


def evaluate_detector(config: DetectionEvaluation) -> dict[str, Any]:
    """Evaluate a detector's checkpoint, in as many processes as the config or a launcher says.

    Args:
        config: what to evaluate, on which images.

    Returns:
        COCO's scores (``coco_scores``), ``images`` (those that could be read), ``bad_images``, ``seconds``,
        ``images_per_second``, ``per_class`` (a dict each) and ``data_problems``.

    Raises:
        FreqFormerError: an unusable checkpoint or data set, or one with other classes.
    """
    return together(_detector, config)


def evaluate_segmenter(config: SegmentationEvaluation) -> dict[str, Any]:
    """Evaluate a segmenter's checkpoint, in as many processes as the config or a launcher says.

    Args:
        config: what to evaluate, on which images.

    Returns:
        ``mIoU``, ``accuracy``, ``mean_accuracy`` (shares), ``loss``, and the others of `evaluate_detector`.

    Raises:
        FreqFormerError: an unusable checkpoint or data set, or one with other classes.
    """
    return together(_segmenter, config)


def _detector(config: DetectionEvaluation) -> dict[str, Any]:
    config.check()
    score_thr, max_dets = config.score_thr, config.max_dets
    require(score_thr is None or 0 <= score_thr <= 1, "--score-thr", "between 0 and 1", score_thr)
    require(max_dets is None or max_dets >= 1, "--max-dets", "at least 1", max_dets)
    model, _ = load_dense(config.model_path, "detection")
    if config.input_size is not None:
        shorter, longest = sides(config.input_size)
        in_order = 1 <= shorter <= longest
        require(in_order, "--input-size", "at least 1, the longest side not below the shorter", config.input_size)
        model.resize_to((shorter, longest))
    model.limit(score_thr, max_dets)
    images = open_instances(
        config.data_path,
        config.split,
        annotations=config.val_json,
        images=config.images,
        masks=model.has_masks,
        classes=model.label_names,
        limit=config.limit,
    )
    require_objects(images, "evaluate")
    task = Detection(DetectionConfig(), model, images)
    return _evaluated(config, "detect eval", task, evaluation_instances(images), lambda: task.per_class)


def _segmenter(config: SegmentationEvaluation) -> dict[str, Any]:
    config.check()
    require(config.test_mode in (None, *TEST_MODES), "--test-mode", "whole or slide", config.test_mode)
    require_size(config.input_size)
    model, about = load_dense(config.model_path, "segmentation")
    require(
        config.shorter_side is None or config.shorter_side >= 1, "--shorter-side", "at least 1", config.shorter_side
    )
    shorter = about["shorter_side"] if config.shorter_side is None else config.shorter_side
    images = open_scenes(
        config.data_path,
        config.split,
        images=config.val_images,
        masks=config.val_masks,
        class_file=config.class_file,
        ignore_index=config.ignore_index,
        classes=model.label_names,
        limit=config.limit,
    )
    settings = SegmentationConfig(
        shorter_side=shorter,
        test_mode=config.test_mode or about["test_mode"],
        input_size=to_2tuple(config.input_size or tuple(about["window"])),
    )
    task = Segmentation(settings, model, images)
    samples = AnnotatedSamples(images, segmentation_eval_transform(shorter))
    return _evaluated(config, "segment eval", task, samples, task.per_class)


def _filtered(transform: Any, band: tuple[float, float], image: Any, target: Any) -> Any:
    pixels, target = transform(image, target)
    # In 0..1, which a band may leave: as bytes it would be cut off there.
    return band_pass(pixels.float() / 255, *band), target


def _evaluated(
    config: DenseEvaluation,
    command: str,
    task: Task,
    samples: AnnotatedSamples,
    per_class: Callable[[], Sequence[dict[str, Any]]],
) -> dict[str, Any]:
    if config.band is not None:
        samples.transform = partial(_filtered, samples.transform, config.band)
    problems = samples.images.problems
    return evaluated(config, command, task, samples, lambda: {"per_class": per_class(), "data_problems": problems})
