"""Semantic segmentation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.layers import to_2tuple
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from ..data import (
    IGNORED,
    AnnotatedSamples,
    Scenes,
    open_scenes,
    overlay,
    segmentation_eval_transform,
    segmentation_transform,
)
from ..dense import DECODERS, Segmenter, create_segmenter
from ..errors import FreqFormerError
from ..tables import write_csv
from .config import require
from .dense import DenseConfig, DenseTask
from .dense_pictures import draw_per_class
from .extremes import Example, Extremes
from .image_scores import miou_of_counts
from .images import require_size
from .task import Batch

TEST_MODES = ("whole", "slide")


@dataclass
class SegmentationConfig(DenseConfig):
    """A run of semantic segmentation; the defaults are the papers' Semantic FPN on ADE20K."""

    command: ClassVar[str] = "segment train"

    decoder: str = "fpn"
    """Decoder of segmentation_models_pytorch: fpn (Semantic FPN), unet, unetplusplus, manet, upernet or segformer."""
    decoder_args: dict[str, Any] = field(default_factory=dict)
    """Further keywords of the decoder, such as decoder_pyramid_channels."""
    pyramid_channels: int = 256
    """Channels of the levels that a simple pyramid makes of a backbone with one grid."""
    train_images: str | None = None
    """The folder of the training images, where they lie in no usual place."""
    train_masks: str | None = None
    """The folder of their masks."""
    val_images: str | None = None
    """The folder of the validation images."""
    val_masks: str | None = None
    """The folder of their masks."""
    class_file: str | None = None
    """The classes' names, a line each, or with colours; by default classes.txt or its like in the data's folder."""
    ignore_index: int | None = 255
    """The value of mask pixels without a class."""
    input_size: int | tuple[int, int] = 512
    """Side in pixels, or [height, width], of the crops that are trained on, and of the windows of --test-mode slide."""
    shorter_side: int | None = None
    """Shorter side that images are resized to before the random scale, and in evaluation; none: as they are."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest random scale of training images."""
    color_jitter: float = 0.3
    """Largest relative change of brightness, contrast and saturation; by default what comes nearest to the papers'
    photometric distortion, which half of the time changes each by more."""
    max_share: float = 0.75
    """Draw a crop again while one class has more of it."""
    class_balance: float = 0.0
    """Weigh each class in the loss by its share of the training pixels to the power of minus this; 0 weighs all alike,
    1 gives every class the same part."""
    test_mode: str = "whole"
    """How images are evaluated: whole, or slide (windows of the input size that overlap by a third)."""
    epochs: int = 64
    """Passes over the training split."""
    batch_size: int = 4
    """Images per process and micro-batch."""
    lr: float = 2e-4
    """Learning rate for lr_base_batch images a step; scaled linearly with the images of a step."""
    lr_base_batch: int | None = 32
    """The batch that lr is meant for; none takes lr as it is."""
    weight_decay: float = 1e-4
    """Weight decay; norms, biases and position embeddings have none without --decay-all."""
    sched: str = "poly"
    """Learning-rate schedule, by timm's name, followed step by step."""
    decay_rate: float = 0.9
    """Factor of each decay of the schedules `step` and `multistep`; the power of `poly`."""
    warmup_epochs: float | None = 0.0
    """Epochs of warm-up; none: 5, or a fifth of a run shorter than 25 epochs."""

    def check(self) -> None:
        """Refuse settings outside their range; raises FreqFormerError."""
        super().check()
        require(self.decoder in DECODERS, "--decoder", f"one of {', '.join(DECODERS)}", self.decoder)
        require(self.test_mode in TEST_MODES, "--test-mode", "whole or slide", self.test_mode)
        require(self.pyramid_channels >= 1, "--pyramid-channels", "at least 1", self.pyramid_channels)
        for split in ("train", "val"):
            images, masks = getattr(self, f"{split}_images"), getattr(self, f"{split}_masks")
            require((images is None) == (masks is None), f"--{split}-masks", f"given with --{split}-images", masks)
        require(self.shorter_side is None or self.shorter_side >= 1, "--shorter-side", "at least 1", self.shorter_side)
        low, high = self.scale
        require(0 < low <= high, "--scale", "two factors above 0, growing", self.scale)
        require(0 < self.max_share <= 1, "--max-share", "above 0, at most 1", self.max_share)
        require(0 <= self.class_balance <= 1, "--class-balance", "between 0 and 1", self.class_balance)
        require(
            self.decoder != "upernet" or self.batch_size > 1,
            "--batch-size",
            "at least 2 with --decoder upernet, which has batch norms of single places",
            self.batch_size,
        )
        require_size(self.input_size)

    def default_output_dir(self) -> str:
        """The run's folder when none is named."""
        data = Path(self.data_path or self.train_images or "data").resolve().name
        return f"runs/{self.decoder}-{self.arch}-{data}"

    def make_model(self, label_names: Sequence[str]) -> Segmenter:
        """The segmenter for data with these classes.

        Raises:
            FreqFormerError: the backbone or the decoder cannot be made, or the weights do not fit.
        """
        return create_segmenter(
            label_names=label_names,
            decoder=self.decoder,
            decoder_args=self.decoder_args,
            pyramid_channels=self.pyramid_channels,
            **self.backbone(),
        )

    def build(self) -> tuple["Segmentation", AnnotatedSamples, AnnotatedSamples]:
        """The task and its training and validation samples.

        Raises:
            FreqFormerError: unusable data, or a model that cannot be made.
        """
        shared: dict[str, Any] = {"class_file": self.class_file, "ignore_index": self.ignore_index}
        train = open_scenes(
            self.data_path,
            self.train_split,
            images=self.train_images,
            masks=self.train_masks,
            limit=self.limit_train,
            **shared,
        )
        val = open_scenes(
            self.data_path,
            self.val_split,
            images=self.val_images,
            masks=self.val_masks,
            classes=train.classes,
            **shared,
        )
        augment = segmentation_transform(
            to_2tuple(self.input_size),
            shorter=self.shorter_side,
            scale=self.scale,
            hflip=self.hflip,
            color_jitter=self.color_jitter,
            max_share=self.max_share,
        )
        weights = balanced(train.counts(), self.class_balance) if self.class_balance else None
        task = Segmentation(self, self.make_model(train.classes), val, weights)
        samples = AnnotatedSamples(train, augment, self.seed)
        return task, samples, AnnotatedSamples(val, segmentation_eval_transform(self.shorter_side))


class Segmentation(DenseTask):
    """Trains and evaluates a segmenter; usable in your own ``lightning.Trainer``.

    Batches are dicts of lists: ``image``, each uint8 (3, h, w), and ``target``, each int64 (H, W) of classes, 255 where
    there is none; in training all of one size, in evaluation a target of the size that scores are taken at.

    Args:
        config: the run's settings.
        model: the segmenter.
        val: what is evaluated on.
        class_weights: of each class in the loss, (K,); by default all alike.
    """

    monitor = "val/mIoU"
    config: SegmentationConfig
    model: Segmenter
    val: Scenes
    score = "mIoU"
    class_weights: Tensor | None

    def __init__(
        self, config: SegmentationConfig, model: Segmenter, val: Scenes, class_weights: Tensor | None = None
    ) -> None:
        about = {
            "palette": val.palette.tolist(),
            "shorter_side": config.shorter_side,
            "test_mode": config.test_mode,
            "window": list(to_2tuple(config.input_size)),
        }
        super().__init__(config, model, val, about)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.val_loss = MeanMetric()
        self.confusion = MulticlassConfusionMatrix(len(val.classes), ignore_index=IGNORED)
        self.counts = torch.zeros(len(val.classes), len(val.classes), dtype=torch.int64)
        """Pixels over the last evaluation, of all processes: rows are true classes, columns predicted ones."""

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy over the pixels that have a class, a scalar."""
        logits = self.model(torch.stack(batch["image"])).float()
        target = torch.stack(batch["target"])
        weights = self.class_weights
        # A row a pixel: of maps CUDA has no deterministic sum.
        rows = logits.movedim(1, -1).flatten(0, 2)
        total = F.cross_entropy(rows, target.flatten(), weights, ignore_index=IGNORED, reduction="sum")
        counted = target != IGNORED
        seen = counted.sum() if weights is None else weights[target[counted]].sum()
        # Where no pixel has a class the mean would be of nothing.
        return total / seen.clamp(min=1e-6)

    def on_validation_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self.confusion.reset()
        self.val_loss.reset()
        self.extremes = Extremes(self.extremes.count)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch's pixels."""
        for index, image, target in zip(batch["index"], batch["image"], batch["target"], strict=True):
            logits = segment_logits(
                self.model, image, (target.shape[0], target.shape[1]), self.about["test_mode"], self.about["window"]
            )
            has_class = target != IGNORED
            if has_class.any():
                self.val_loss.update(F.cross_entropy(logits[:, has_class].T, target[has_class], reduction="none"))
            predicted = logits.argmax(0)
            counts = self.confusion(predicted[None], target[None])
            score = miou_of_counts(counts) if self.keeps_examples else None
            if score is not None:
                self.extremes.add(
                    score,
                    index,
                    lambda predicted=predicted: predicted.to(torch.uint8).cpu(),  # type: ignore[misc]
                )

    def on_validation_epoch_end(self) -> None:
        """Score what all processes have counted."""
        self.counts = self.confusion.compute().cpu()
        self.extremes.agree(self.gathered)
        if not self.counts.any():
            if self.trainer.sanity_checking:
                return
            raise FreqFormerError("no pixel of the masks to evaluate on has a class: check them, and --ignore-index")
        scores = segmentation_scores(self.counts)
        self.log_dict({f"val/{name}": value for name, value in scores.items()}, prog_bar=True)
        self.log("val/loss", self.val_loss.compute())

    def per_class(self) -> list[dict[str, Any]]:
        """Name, pixels, IoU and accuracy of each class over the last evaluation."""
        right, true, predicted = self.counts.diagonal(), self.counts.sum(1), self.counts.sum(0)
        union = true + predicted - right
        return [
            {
                "name": name,
                "pixels": int(true[place]),
                "IoU": float(right[place] / union[place]),
                "accuracy": float(right[place] / true[place]),
            }
            for place, name in enumerate(self.model.label_names)
        ]

    def draw(self, folder: Path) -> None:
        """Write ``best.png`` and ``worst.png``, the images of the largest and the smallest `miou_of_counts` with their
        masks and predictions, and ``per_class.png``."""
        names, palette = self.model.label_names, self.val.palette
        legend = {name: tuple(colour) for name, colour in zip(names, palette.tolist(), strict=True)}
        self.draw_examples(folder, ["annotated", "predicted"], legend)
        draw_per_class(self.per_class(), folder / "per_class.png", "IoU")

    def pictures(self, example: Example) -> list[Image.Image]:
        """An image under its mask, and under what was predicted."""
        image, mask = self.val.load(example.index)
        pixels = np.asarray(image)
        return [Image.fromarray(overlay(pixels, one.numpy(), self.val.palette)) for one in (mask, example.found)]

    def keep(self, folder: Path) -> None:
        """Write each class's scores, and which images are best and worst."""
        super().keep(folder)
        write_csv(folder / "per_class.csv", self.per_class())


def segment_logits(model: Segmenter, image: Tensor, size: tuple[int, int], mode: str, window: Sequence[int]) -> Tensor:
    """The logits of an image at a size.

    Args:
        model: a segmenter in evaluation mode.
        image: (3, h, w), uint8 or in 0..1.
        size: (H, W) of the result.
        mode: ``"whole"`` or ``"slide"``.
        window: height and width of the windows of ``"slide"``.

    Returns:
        (classes, H, W), float32.
    """
    logits = model(image[None])[0].float() if mode == "whole" else model.sliding(image, (window[0], window[1]))
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


def balanced(counts: np.ndarray, power: float) -> Tensor:
    """The weights of classes in a loss: their shares to the power of minus ``power``, 1 on the mean over the pixels.

    Args:
        counts: the pixels of each class (K,); one that never occurs has no weight.
        power: 0 to 1.

    Returns:
        Float32 (K,).

    Raises:
        FreqFormerError: no class occurs at all.
    """
    if not counts.any():
        raise FreqFormerError(
            "no mask of the training split can be read, or none has a class: check the masks and --ignore-index, "
            "or give --class-balance 0"
        )
    shares = counts / max(1, counts.sum())
    weights = np.where(counts > 0, np.maximum(shares, 1e-12) ** -power, 0.0)
    return torch.tensor(weights / (weights * shares).sum(), dtype=torch.float32)


def segmentation_scores(counts: Tensor) -> dict[str, float]:
    """Scores of a confusion matrix of pixels.

    Args:
        counts: (K, K), rows are true classes, columns predicted ones.

    Returns:
        In 0..1: ``mIoU``, the mean intersection over union of the classes that occur or are predicted, ``accuracy`` of
        the pixels, and ``mean_accuracy`` of the classes that occur.
    """
    counts = counts.double()
    right, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    union = true + predicted - right
    return {
        "mIoU": float((right / union)[union > 0].mean()),
        "accuracy": float(right.sum() / counts.sum()),
        "mean_accuracy": float((right / true)[true > 0].mean()),
    }
