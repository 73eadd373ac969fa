"""Image classification."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchvision.transforms import v2

from ..data import Images, Samples, eval_transform, open_images, train_transform
from ..factory import Classifier, create_model, describe_model
from ..models import SpectralNet, canonical_name, load_checkpoint
from .config import RunConfig, require
from .task import Batch, Task


@dataclass
class ClassificationConfig(RunConfig):
    """A classification run: model, data and augmentation besides what every run has."""

    arch: str = "freqformer_n"
    """The model's name; `freqformer models` lists them."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Further keywords of the model, such as num_heads or spectral_depth."""
    data_set: str = "IMNET"
    """IMNET or FOLDER (train/ and val/ of class folders), CARS, FLOWERS, PETS, INAT, INAT19, FGVC (JSON splits),
    FASHION_MNIST, MNIST, CIFAR10, CIFAR100, WDS (tar shards), DIGITS, or hf:NAME (of Hugging Face, or hf:FOLDER)."""
    data_path: str | None = None
    """The folder the data set lies in."""
    input_size: int | tuple[int, int] | None = None
    """Image side in pixels, or [height, width]; by default the model's native size."""
    limit_train: int | None = None
    """Train on this many images only, balanced over the classes."""
    finetune: str | None = None
    """Start from these weights; filters and position embedding are resampled to the input size."""
    drop: float = 0.0
    """Dropout before the classifier."""
    drop_path: float | None = None
    """Stochastic depth; by default the variant's published rate."""
    smoothing: float = 0.1
    """Label smoothing."""
    mixup: float = 0.8
    """Mixup's alpha; 0 is off."""
    cutmix: float = 1.0
    """CutMix's alpha; 0 is off. With mixup on too, each batch draws one of them."""
    aa: str = "rand-m9-mstd0.5-inc1"
    """timm's auto-augment policy; none is off."""
    reprob: float = 0.0
    """Probability of random erasing."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    crop_padding: int | None = None
    """Pixels of zeros around images of up to 32x32 before a random crop; by default an eighth of the side."""
    crop_pct: float | None = None
    """Share of the resized image that evaluation keeps; by default the model's."""
    interpolation: str = "bicubic"
    """How images are resized."""

    def check(self) -> None:
        """Refuse settings outside their range; raises FreqFormerError."""
        super().check()
        for name in ("drop", "drop_path", "smoothing", "reprob", "hflip"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"--{name.replace('_', '-')}", "between 0 and 1", value)
        for name in ("mixup", "cutmix"):
            require(getattr(self, name) >= 0, f"--{name}", "0 (off) or more", getattr(self, name))
        require(self.crop_pct is None or 0 < self.crop_pct <= 1, "--crop-pct", "above 0, at most 1", self.crop_pct)
        require(self.crop_padding is None or self.crop_padding >= 0, "--crop-padding", "0 or more", self.crop_padding)
        require_size(self.input_size)

    def build(self) -> tuple["Classification", Samples, Samples]:
        """The task and its training and validation samples.

        Raises:
            FreqFormerError: unusable data, an unknown model, or an unfit checkpoint.
        """
        train = open_images(self.data_set, self.data_path, "train", limit=self.limit_train)
        val = open_images(self.data_set, self.data_path, "val", classes=train.classes)
        task = Classification(self, label_names=train.classes)
        if self.finetune is not None:
            load_checkpoint(task.model, self.finetune)
        cfg = task.model.pretrained_cfg
        mean, std = cfg["mean"], cfg["std"]
        augment = train_transform(
            cfg["input_size"][1:],
            mean=mean,
            std=std,
            interpolation=self.interpolation,
            hflip=self.hflip,
            aa=self.aa,
            reprob=self.reprob,
            padding=self.crop_padding,
        )
        return task, Samples(train, augment, seed=self.seed), evaluation_samples(task.model, val)

    def default_output_dir(self) -> str:
        """The run's folder when none is named."""
        # A Hugging Face data set has a slash in its name, or is a folder.
        data = re.sub(r"[^\w.-]+", "-", self.data_set.lower()).strip("-")
        return f"runs/{canonical_name(self.arch)}-{data}"


class Classification(Task):
    """Trains and evaluates a classifier; usable in your own ``lightning.Trainer``.

    Batches are dicts of ``image`` (B, 3, H, W) and ``target`` (B,), or plain (image, target) pairs.

    Args:
        config: the run's settings.
        num_classes: classes; taken from ``label_names`` or the model when absent.
        label_names: names of the targets, in order; kept in checkpoints.
        model: the network; made from ``config.arch`` when absent.

    Raises:
        FreqFormerError: the model cannot be made.
    """

    monitor = "val/top1"
    config: ClassificationConfig
    model: SpectralNet

    def __init__(
        self,
        config: ClassificationConfig,
        *,
        num_classes: int | None = None,
        label_names: Sequence[str] | None = None,
        model: Classifier | None = None,
    ) -> None:
        label_names = None if label_names is None else list(label_names)
        if model is None:
            model = _make_model(config, num_classes or (len(label_names) if label_names else 1000))
        super().__init__(config, model)
        self.label_names = label_names
        self.mix = _mixing(config, model.num_classes)
        self.smoothing = config.smoothing
        classes = model.num_classes
        self.val_metrics = MetricCollection(
            {
                "val/top1": MulticlassAccuracy(classes, average="micro"),
                "val/top5": MulticlassAccuracy(classes, average="micro", top_k=min(5, classes)),
            }
        )
        self.val_loss = MeanMetric()
        self.confusion = MulticlassConfusionMatrix(classes)
        """Rows are true classes, columns predicted ones, over the last evaluation."""

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, classes)."""
        return self.model(image)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy with label smoothing on mixed images, a scalar."""
        image, target = _unpack(batch)
        if self.mix is not None:
            image, target = self.mix(image, target)
        return F.cross_entropy(self.model(image), target, label_smoothing=self.smoothing)

    def on_validation_epoch_start(self) -> None:
        """Forget the last evaluation's counts."""
        self.confusion.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch."""
        image, target = _unpack(batch)
        if len(target) == 0:  # None of its images could be read.
            return
        logits = self.model(image).float()
        self.val_loss.update(F.cross_entropy(logits, target, reduction="none"))
        self.val_metrics.update(logits, target)
        self.confusion.update(logits, target)
        self.log("val/loss", self.val_loss)
        self.log_dict(self.val_metrics, prog_bar=True)

    def per_class(self) -> list[dict[str, Any]]:
        """Name, number of images and accuracy of each class over the last evaluation."""
        counts = self.confusion.confmat
        names = self.label_names or [str(i) for i in range(len(counts))]
        return [
            {
                "class": name,
                "images": int(row.sum()),
                "accuracy": float(row[i] / row.sum()) if row.sum() else None,
            }
            for i, (name, row) in enumerate(zip(names, counts, strict=True))
        ]

    def draw(self, folder: Path) -> None:
        """Draw the last evaluation into a folder: ``confusion.png``, for up to 100 classes."""
        from .pictures import draw_confusion

        counts = self.confusion.confmat
        if len(counts) <= 100:
            names = self.label_names or [str(i) for i in range(len(counts))]
            draw_confusion(counts.cpu().numpy(), names, folder / "confusion.png")

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of its model, in the fields of timm's ``config.json``."""
        return describe_model(self.model, self.config.model_args, self.label_names)


def require_size(size: int | tuple[int, int] | None) -> None:
    """Raise FreqFormerError unless an input size has at least one pixel a side."""
    require(size is None or min(to_2tuple(size)) >= 1, "--input-size", "at least 1", size)


def evaluation_samples(model: Classifier, images: Images) -> Samples:
    """Images under the preprocessing that a model's ``pretrained_cfg`` names."""
    return Samples(images, model_transform(model))


def model_transform(model: Classifier) -> Any:
    """A model's evaluation preprocessing: RGB image to normalised tensor (3, H, W)."""
    cfg = model.pretrained_cfg
    return eval_transform(
        cfg["input_size"][1:],
        mean=cfg["mean"],
        std=cfg["std"],
        interpolation=cfg["interpolation"],
        crop_pct=cfg["crop_pct"],
    )


def _make_model(config: ClassificationConfig, num_classes: int) -> SpectralNet:
    arguments: dict[str, Any] = {"num_classes": num_classes, "drop_rate": config.drop, **config.model_args}
    if config.input_size is not None:
        arguments["img_size"] = to_2tuple(config.input_size)
    if config.drop_path is not None:
        arguments["drop_path_rate"] = config.drop_path
    model = create_model(config.arch, **arguments)
    cfg = {**model.pretrained_cfg, "interpolation": config.interpolation}
    if config.crop_pct is not None:
        cfg["crop_pct"] = config.crop_pct
    model.pretrained_cfg = cfg
    return model


def _mixing(config: ClassificationConfig, classes: int) -> nn.Module | None:
    choices: list[nn.Module] = []
    if config.mixup > 0:
        choices.append(v2.MixUp(alpha=config.mixup, num_classes=classes))
    if config.cutmix > 0:
        choices.append(v2.CutMix(alpha=config.cutmix, num_classes=classes))
    return v2.RandomChoice(choices) if choices else None


def _unpack(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, dict):
        return batch["image"], torch.as_tensor(batch["target"])
    image, target = batch
    return image, target
