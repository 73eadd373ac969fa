"""Detection and instance segmentation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..data import AnnotatedSamples, Instances, detection_transform, open_instances
from ..dense import DETECTORS, Detector, create_detector
from ..errors import FreqFormerError
from ..tables import write_csv
from .coco_scores import coco_report, results_for, results_of, write_results
from .config import require
from .dense import DenseConfig, DenseTask
from .dense_pictures import Colour, class_colours, draw_instances, draw_per_class
from .extremes import Example, Extremes
from .image_scores import f1_of_boxes
from .task import Batch

SHOWN = 0.5
"""Pictures show detections of greater scores."""
# Each of an epoch's line; the others are in metrics.json.
_LOGGED = ("AP", "AP50", "AP75")


@dataclass
class DetectionConfig(DenseConfig):
    """A run of detection or instance segmentation; the defaults are the papers' RetinaNet 1x on COCO."""

    command: ClassVar[str] = "detect train"

    detector: str = "retinanet"
    """retinanet, fasterrcnn or maskrcnn (which learns from masks too), over a feature pyramid."""
    train_json: str | None = None
    """The training split's annotations in COCO's format, where they lie in no usual place."""
    val_json: str | None = None
    """The validation split's."""
    images: str | None = None
    """The folder that the annotations' file names begin at."""
    input_size: int | tuple[int, int] = (800, 1333)
    """Shorter side of the images in pixels, or [shorter side, longest side at most]."""
    train_sizes: list[int] = field(default_factory=list)
    """Shorter sides that training images are resized to at random (multi-scale); by default that of input_size."""
    scale_jitter: tuple[float, float] | None = None
    """Resize training images by a random factor of this range besides, and cut what is too large."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    fpn_channels: int = 256
    """Channels of the feature pyramid; the heads follow."""
    head_norm: str = "none"
    """Norms in the pyramid and the heads: none, or group, for training from scratch."""
    anchor_sizes: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    """Side in pixels of the anchors of each of the five levels, in images as resized."""
    anchor_ratios: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    """Heights over widths of the anchors."""
    proposals: int = 1000
    """Boxes that the first of two stages hands on; in training it chooses them of twice as many."""
    roi_samples: int = 512
    """How many of them, of each image, the second stage is trained on."""
    score_thr: float = 0.05
    """Detections of smaller scores are left out."""
    nms_thr: float = 0.5
    """Of two boxes of a class that overlap more one is left out."""
    max_dets: int = 100
    """Detections of an image at most."""
    epochs: int = 12
    """Passes over the training split."""
    batch_size: int = 2
    """Images per process and micro-batch."""
    lr: float = 1e-4
    """Learning rate for lr_base_batch images a step; scaled linearly with the images of a step."""
    sched: str = "multistep"
    """Learning-rate schedule, by timm's name, followed step by step."""
    decay_milestones: list[int] = field(default_factory=lambda: [8, 11])
    """Epochs after which the schedule `multistep` decays."""
    warmup_epochs: float | None = 0.068
    """Epochs of warm-up, by default 500 steps of 16 images of COCO; none: 5, or a fifth of a run shorter than 25."""
    warmup_lr: float = 1e-7
    """Learning rate at the start of the warm-up."""

    def __post_init__(self) -> None:
        self.detector = self.detector.lower().replace("_", "").replace("-", "")

    def check(self) -> None:
        """Refuse settings outside their range; raises FreqFormerError."""
        super().check()
        require(self.detector in DETECTORS, "--detector", f"one of {', '.join(DETECTORS)}", self.detector)
        shorter, longest = sides(self.input_size)
        require(
            1 <= shorter <= longest,
            "--input-size",
            "at least 1, the longest side not below the shorter",
            self.input_size,
        )
        require(min(self.train_sizes, default=1) >= 1, "--train-sizes", "at least 1", self.train_sizes)
        require(0 <= self.vflip <= 1, "--vflip", "between 0 and 1", self.vflip)
        require(self.fpn_channels >= 4, "--fpn-channels", "at least 4", self.fpn_channels)
        require(self.head_norm in ("none", "group"), "--head-norm", "none or group", self.head_norm)
        require(min(self.anchor_sizes, default=0) > 0, "--anchor-sizes", "above 0", self.anchor_sizes)
        require(min(self.anchor_ratios, default=0) > 0, "--anchor-ratios", "above 0", self.anchor_ratios)
        require(self.proposals >= 1, "--proposals", "at least 1", self.proposals)
        require(self.roi_samples >= 1, "--roi-samples", "at least 1", self.roi_samples)
        require(self.max_dets >= 1, "--max-dets", "at least 1", self.max_dets)
        for name in ("score_thr", "nms_thr"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"--{name.replace('_', '-')}", "between 0 and 1", value)
        if self.scale_jitter is not None:
            low, high = self.scale_jitter
            require(0 < low <= high, "--scale-jitter", "two factors above 0, growing", self.scale_jitter)

    def default_output_dir(self) -> str:
        """The run's folder when none is named."""
        data = Path(self.data_path or self.train_json or "data").resolve().name
        return f"runs/{self.detector}-{self.arch}-{data}"

    def make_model(self, label_names: Sequence[str]) -> Detector:
        """The detector for data with these classes.

        Raises:
            FreqFormerError: the backbone cannot be made, or its weights do not fit.
        """
        return create_detector(
            label_names=label_names,
            detector=self.detector,
            size=sides(self.input_size),
            fpn_channels=self.fpn_channels,
            head_norm=self.head_norm,
            anchor_sizes=self.anchor_sizes,
            anchor_ratios=self.anchor_ratios,
            proposals=self.proposals,
            roi_samples=self.roi_samples,
            score_thr=self.score_thr,
            nms_thr=self.nms_thr,
            max_dets=self.max_dets,
            **self.backbone(),
        )

    def build(self) -> tuple["Detection", AnnotatedSamples, AnnotatedSamples]:
        """The task and its training and validation samples.

        Raises:
            FreqFormerError: unusable data, or a model that cannot be made.
        """
        masks = self.detector == "maskrcnn"
        where = {"path": self.data_path, "images": self.images, "masks": masks}
        train = open_instances(
            split=self.train_split,
            annotations=self.train_json,
            limit=self.limit_train,
            **where,  # type: ignore[arg-type]
        )
        val = open_instances(
            split=self.val_split,
            annotations=self.val_json,
            classes=train.classes,
            **where,  # type: ignore[arg-type]
        )
        shorter, longest = sides(self.input_size)
        augment = detection_transform(
            self.train_sizes or [shorter],
            longest,
            hflip=self.hflip,
            vflip=self.vflip,
            color_jitter=self.color_jitter,
            jitter_scale=self.scale_jitter,
        )
        require_objects(train, "train")
        require_objects(val, "evaluate")
        task = Detection(self, self.make_model(train.classes), val, train.category_ids)
        return task, AnnotatedSamples(train, augment, self.seed), evaluation_instances(val)


class Detection(DenseTask):
    """Trains and evaluates a detector; usable in your own ``lightning.Trainer``.

    Batches are dicts of lists: ``image``, each uint8 (3, H, W), ``target``, each a dict of ``boxes`` (N, 4), ``labels``
    (N,) and, for Mask R-CNN, ``masks`` (N, H, W); in evaluation also ``index``, which of ``val`` each image is.

    Args:
        config: the run's settings.
        model: the detector.
        val: what is evaluated on.
        category_ids: what the training annotations call the classes, for checkpoints; by default as ``val`` does.
    """

    config: DetectionConfig
    model: Detector
    val: Instances
    score = "F1"

    def __init__(
        self, config: DetectionConfig, model: Detector, val: Instances, category_ids: Sequence[int] | None = None
    ) -> None:
        super().__init__(config, model, val, {"category_ids": list(category_ids or val.category_ids)})
        self.monitor = "val/mask_AP" if model.has_masks else "val/AP"
        self.kinds = ("bbox", "segm") if model.has_masks else ("bbox",)
        self.results: list[dict[str, Any]] = []
        """Rows of COCO's result format over the last evaluation, of all processes."""
        self.per_class: list[dict[str, Any]] = []
        """Each class's scores over the last evaluation."""
        self._seen: list[int] = []

    def loss(self, batch: Batch) -> Tensor:
        """The sum of the detector's losses on a batch, a scalar."""
        losses = self.model(batch["image"], batch["target"])
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        return sum(losses.values(), torch.zeros((), device=self.device))

    def on_validation_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self.results, self.per_class, self._seen = [], [], []
        self.extremes = Extremes(self.extremes.count)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep what is found on a batch."""
        if not batch["image"]:
            return
        for index, found in zip(batch["index"], self.model(batch["image"]), strict=True):
            self._seen.append(index)
            self.results += results_of(self.val.number(index), found, self.val.category_ids, masks=self.model.has_masks)
            if not self.keeps_examples:
                continue
            certain = found["scores"] > SHOWN
            score = f1_of_boxes(found["boxes"][certain].cpu(), found["labels"][certain].cpu(), *self._objects(index))
            if score is not None:
                # bool masks are a quarter of what they were made of.
                self.extremes.add(
                    score,
                    index,
                    lambda found=found, certain=certain: {  # type: ignore[misc]
                        name: (value[certain] > 0.5 if name == "masks" else value[certain]).cpu()
                        for name, value in found.items()
                    },
                )

    def _objects(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, labels and which are crowds of an image's annotations, without reading the image."""
        rows = slice(self.val.starts[index], self.val.starts[index + 1])
        left, top, width, height = torch.from_numpy(self.val.boxes[rows]).float().T
        boxes = torch.stack([left, top, left + width, top + height], 1)
        return boxes, torch.from_numpy(self.val.labels[rows]), torch.from_numpy(self.val.crowd[rows])

    def on_validation_epoch_end(self) -> None:
        """Score what all processes have found."""
        self._seen, self.results = self.gathered(self._seen), self.gathered(self.results)
        self.extremes.agree(self.gathered)
        # COCO's own limit stands as long as no more detections are asked for.
        limit = max(100, self.model.arguments["max_dets"])
        scores, self.per_class = coco_report(
            self.val.ground_truth(sorted(self._seen)), self.results, self.kinds, max_dets=limit
        )
        if math.isnan(scores["AP"]) and not self.trainer.sanity_checking:
            raise FreqFormerError("the images to evaluate on that can be read have no object: check their annotations")
        if self.trainer.state.fn is TrainerFn.FITTING:
            scores = {name: value for name, value in scores.items() if name.removeprefix("mask_") in _LOGGED}
        # What there is nothing of has no score.
        self.log_dict({f"val/{name}": value for name, value in scores.items() if not math.isnan(value)})

    def draw(self, folder: Path) -> None:
        """Write ``best.png`` and ``worst.png``, the images of the largest and the smallest `f1_of_boxes` with what is
        there and what was found, and ``per_class.png``."""
        colours = class_colours(self.model.label_names)
        self.draw_examples(folder, ["annotated", f"found, scores above {SHOWN}"], colours)
        draw_per_class(self.per_class, folder / "per_class.png")

    def pictures(self, example: Example) -> list[Image.Image]:
        """An image with the annotated objects, and with what was found."""
        colours = class_colours(self.model.label_names)
        image, target = self.val.load(example.index)
        names = [self.model.label_names[label] for label in target["labels"].tolist()]
        return [
            draw_instances(image, target["boxes"], names, None, target.get("masks"), colours=colours),
            draw_detection(image, example.found, self.model.label_names, colours),
        ]

    def keep(self, folder: Path) -> None:
        """Write the detections in COCO's result format, each class's scores, and which images are best and worst."""
        super().keep(folder)
        write_csv(folder / "per_class.csv", self.per_class)
        ids = {self.val.number(index): self.val.image_id(index) for index in self._seen}
        results = [{**row, "image_id": ids[row["image_id"]]} for row in self.results]
        for kind in self.kinds:
            write_results(folder / f"results.{kind}.json", results_for(results, kind))


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Shorter and longest side of images; of a shorter side alone the longest has COCO's relation, 1333 to 800."""
    return (size, round(size * 1333 / 800)) if isinstance(size, int) else size


def require_objects(images: Instances, purpose: str) -> None:
    """Raise FreqFormerError where there is nothing to find in images to "train" or "evaluate" on."""
    if images.crowd.all():
        raise FreqFormerError(f"the annotations to {purpose} on have no object: check --data-path and the split")


def evaluation_instances(images: Instances) -> AnnotatedSamples:
    """Images as they are, which a detector resizes itself."""
    return AnnotatedSamples(images, as_it_is)


def draw_detection(
    image: Image.Image, found: dict[str, Tensor], names: Sequence[str], colours: Mapping[str, Colour]
) -> Image.Image:
    """Draw an image's detections of a score above ``SHOWN``.

    Args:
        image: an RGB image.
        found: what a `Detector` gives for it.
        names: of the classes.
        colours: by name.
    """
    shown = {name: value[found["scores"] > SHOWN] for name, value in found.items()}
    labels = [names[label] for label in shown["labels"].tolist()]
    return draw_instances(image, shown["boxes"], labels, shown["scores"], shown.get("masks"), colours=colours)


def as_it_is(image: Image.Image, target: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
    """An RGB image as a uint8 tensor (3, H, W), without a target."""
    return F.pil_to_tensor(image), {}
