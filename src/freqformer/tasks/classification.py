"""Image classification."""

import re
from collections.abc import Mapping, Sequence
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

from ..data import DeviceAugmentation, Images, LabelMaps, Samples, eval_transform, open_images, train_transform
from ..factory import Classifier, create_model, describe_model
from ..models import SpectralNet, canonical_name, load_checkpoint
from ..teachers import Teacher, load_teacher
from .config import RunConfig, require
from .losses import Criterion, CrossEntropy, Distillation, TokenLabels, require_token_grid
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
    FASHION_MNIST, MNIST, CIFAR10, CIFAR100, WDS (tar shards), DIGITS, a task of VTAB-1k (cifar100, clevr-count ...)
    or hf:NAME (of Hugging Face, or hf:FOLDER)."""
    data_path: str | None = None
    """The folder the data set lies in."""
    train_split: str = "train"
    """What to train on: train, train80 (four fifths of it), or another split of the data set, such as train800."""
    val_split: str = "val"
    """What to evaluate on: val, train20 (the fifth of train that train80 leaves), or another split, such as test."""
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
    mixup_prob: float = 1.0
    """Share of the batches that are mixed at all."""
    mixup_switch_prob: float = 0.5
    """With both on, the share of CutMix."""
    aa: str = "rand-m9-mstd0.5-inc1"
    """timm's auto-augment policy; none is off."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation where aa is none; DeiT and timm have 0.4."""
    reprob: float = 0.0
    """Probability of random erasing."""
    remode: str = "pixel"
    """What is put in place of erased rectangles: pixel (noise), rand (a random colour each) or const (the mean)."""
    recount: int = 1
    """The most rectangles that random erasing takes of an image."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    resize: str = "random"
    """How images get the input size: random (in training a random crop, resized; in evaluation as crop), crop (the
    shorter side resized to the input size / crop_pct, then in training a random crop, in evaluation the middle) or
    squash (the whole image, whatever its aspect)."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area that a random crop takes, where it is resized."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of a random crop."""
    crop_padding: int | None = None
    """Pixels of zeros around images of up to 32x32 before a random crop; by default an eighth of the side."""
    crop_pct: float | None = None
    """Share of the resized image that evaluation keeps; by default the model's."""
    interpolation: str = "bicubic"
    """How images are resized."""
    train_interpolation: str | None = None
    """How images are resized in training, by default as in evaluation; random draws bilinear or bicubic."""
    augment_on_device: bool = False
    """Leave colours, normalisation and random erasing to the device, in whole batches; torchvision's operations."""
    distillation_type: str = "none"
    """Learn from a teacher too: soft (its probabilities), hard (its most probable class) or none."""
    distillation_alpha: float = 0.5
    """The teacher's share in the loss."""
    distillation_tau: float = 1.0
    """Temperature of soft distillation."""
    teacher_model: str | None = None
    """The teacher: any model of timm or of this package with the data's classes."""
    teacher_path: str | None = None
    """Its weights, a file or a run's folder; by default, and with timm, those that timm publishes."""
    token_label: bool = False
    """Train every token of a pyramid on a label of its own, with mix-token."""
    token_label_data: str | None = None
    """Folder of label maps (`freqformer labelmaps`), in place of the image's label. Mixup and CutMix are then off."""
    token_label_size: int | None = None
    """Labels along a side; must be the model's last grid, which is the default."""
    dense_weight: float = 0.5
    """Weight of the tokens' loss."""
    cls_weight: float = 1.0
    """Weight of the image's loss beside the tokens'."""

    def check(self) -> None:
        """Refuse settings outside their range; raises FreqFormerError."""
        super().check()
        for name in (
            *("drop", "drop_path", "smoothing", "reprob", "hflip", "vflip"),
            *("mixup_prob", "mixup_switch_prob", "distillation_alpha"),
        ):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"--{name.replace('_', '-')}", "between 0 and 1", value)
        for name in ("mixup", "cutmix", "color_jitter", "dense_weight", "cls_weight"):
            value = getattr(self, name)
            require(value >= 0, f"--{name.replace('_', '-')}", "0 (off) or more", value)
        require(self.recount >= 1, "--recount", "at least 1", self.recount)
        require(self.remode in ("pixel", "rand", "const"), "--remode", "pixel, rand or const", self.remode)
        self._check_teaching()
        require(self.crop_pct is None or 0 < self.crop_pct <= 1, "--crop-pct", "above 0, at most 1", self.crop_pct)
        require(self.crop_padding is None or self.crop_padding >= 0, "--crop-padding", "0 or more", self.crop_padding)
        require(self.resize in ("random", "crop", "squash"), "--resize", "random, crop or squash", self.resize)
        require(
            self.resize != "squash" or self.crop_pct in (None, 1), "--crop-pct", "1 with --resize squash", self.crop_pct
        )
        require_size(self.input_size)

    def _check_teaching(self) -> None:
        kind, teacher = self.distillation_type, self.teacher_model
        require(kind in ("none", "soft", "hard"), "--distillation-type", "none, soft or hard", kind)
        require(self.distillation_tau > 0, "--distillation-tau", "more than 0", self.distillation_tau)
        require(kind == "none" or teacher is not None, "--teacher-model", f"given for {kind} distillation", teacher)
        require(kind != "none" or teacher is None, "--distillation-type", "soft or hard with --teacher-model", kind)
        require(self.teacher_path is None or teacher is not None, "--teacher-model", "given with --teacher-path", None)
        if self.token_label:
            require(kind == "none", "--distillation-type", "none with --token-label", kind)
            require(self.cls_weight + self.dense_weight > 0, "--cls-weight", "above 0 where --dense-weight is 0", 0)
        else:
            for name in ("token_label_data", "token_label_size"):
                value = getattr(self, name)
                require(value is None, f"--{name.replace('_', '-')}", "none without --token-label", value)

    def build(self) -> tuple["Classification", Samples, Samples]:
        """The task and its training and validation samples.

        Raises:
            FreqFormerError: unusable data, an unknown model, or an unfit checkpoint.
        """
        train = open_images(self.data_set, self.data_path, self.train_split, limit=self.limit_train)
        val = open_images(self.data_set, self.data_path, self.val_split, classes=train.classes)
        task = Classification(self, label_names=train.classes)
        if self.finetune is not None:
            load_checkpoint(task.model, self.finetune)
        augment = training_transform(self, task.model.pretrained_cfg)
        maps = None
        if self.token_label_data is not None:
            maps = LabelMaps(self.token_label_data, self.data_path, len(train.classes))
            # A missing folder of maps, or maps of other images, are told before the first step.
            maps.load(train.name(0))
        samples = Samples(train, augment, seed=self.seed, label_maps=maps)
        return task, samples, evaluation_samples(task.model, val)

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
        self.augment = _device_augmentation(config, model) if config.augment_on_device else None
        self.criterion = _criterion(config, self.model)
        classes = model.num_classes
        self.val_metrics = MetricCollection(
            {
                "val/top1": MulticlassAccuracy(classes, average="micro"),
                "val/top5": MulticlassAccuracy(classes, average="micro", top_k=min(5, classes)),
            }
        )
        self.val_loss = MeanMetric()
        self.confusion = MulticlassConfusionMatrix(classes)
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        """Rows are true classes, columns predicted ones, over the last evaluation, of all processes."""

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, classes)."""
        return self.model(image)

    def loss(self, batch: Batch) -> Tensor:
        """The criterion of the run on augmented and mixed images, a scalar."""
        image, target = _unpack(batch)
        if self.augment is not None:
            image = self.augment(image)
        if self.mix is not None:
            image, target = self.mix(image, target)
        return self.criterion(self.model, image, target, batch)

    def on_validation_epoch_start(self) -> None:
        """Forget the last evaluation's counts."""
        self.confusion.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch."""
        image, target = _unpack(batch)
        if len(target) == 0:
            # None of its images could be read, or only other processes have some left; they wait for this forward.
            if self.trainer.world_size > 1:
                self.model(torch.zeros(1, *self.model.pretrained_cfg["input_size"], device=self.device))
            return
        logits = self.model(image).float()
        self.val_loss.update(F.cross_entropy(logits, target, reduction="none"))
        self.val_metrics.update(logits, target)
        self.confusion.update(logits, target)
        self.log("val/loss", self.val_loss)
        self.log_dict(self.val_metrics, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Add up the counts of all processes."""
        self.counts = self.confusion.compute().cpu()

    def per_class(self) -> list[dict[str, Any]]:
        """Name, number of images and accuracy of each class over the last evaluation."""
        counts = self.counts
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

        counts = self.counts
        if len(counts) <= 100:
            names = self.label_names or [str(i) for i in range(len(counts))]
            draw_confusion(counts.numpy(), names, folder / "confusion.png")

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
        crop_mode=cfg.get("crop_mode") or "center",
    )


def training_transform(config: ClassificationConfig, cfg: Mapping[str, Any]) -> Any:
    """The augmentation of a run for the input size and the normalisation of a model's ``pretrained_cfg``."""
    return train_transform(
        cfg["input_size"][1:],
        mean=cfg["mean"],
        std=cfg["std"],
        interpolation=config.train_interpolation or config.interpolation,
        resize=config.resize,
        crop_pct=cfg["crop_pct"],
        hflip=config.hflip,
        vflip=config.vflip,
        aa=config.aa,
        color_jitter=config.color_jitter,
        reprob=config.reprob,
        remode=config.remode,
        recount=config.recount,
        scale=config.scale,
        ratio=config.ratio,
        padding=config.crop_padding,
        on_device=config.augment_on_device,
    )


def preprocessing(config: ClassificationConfig, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A model's ``pretrained_cfg`` with the evaluation that a run's config asks for."""
    changes: dict[str, Any] = {"interpolation": config.interpolation}
    if config.crop_pct is not None:
        changes["crop_pct"] = config.crop_pct
    if config.resize == "squash":
        changes |= {"crop_mode": "squash", "crop_pct": 1.0}
    elif config.resize == "crop":
        changes["crop_mode"] = "center"
    return {**cfg, **changes}


def _make_model(config: ClassificationConfig, num_classes: int) -> SpectralNet:
    arguments: dict[str, Any] = {"num_classes": num_classes, "drop_rate": config.drop, **config.model_args}
    if config.input_size is not None:
        arguments["img_size"] = to_2tuple(config.input_size)
    if config.drop_path is not None:
        arguments["drop_path_rate"] = config.drop_path
    model = create_model(config.arch, **arguments)
    model.pretrained_cfg = preprocessing(config, model.pretrained_cfg)
    return model


def _mixing(config: ClassificationConfig, classes: int) -> nn.Module | None:
    if config.token_label_data is not None:
        return None  # Label maps say what lies where; mix-token takes the place of mixing pixels.
    choices = [
        (v2.MixUp, config.mixup, 1 - config.mixup_switch_prob),
        (v2.CutMix, config.cutmix, config.mixup_switch_prob),
    ]
    kinds = [(kind(alpha=alpha, num_classes=classes), share) for kind, alpha, share in choices if alpha > 0]
    if not kinds or config.mixup_prob == 0:
        return None
    transforms, shares = [kind for kind, _ in kinds], [share for _, share in kinds]
    mix = v2.RandomChoice(transforms, p=shares if len(kinds) > 1 else None)
    return mix if config.mixup_prob == 1 else v2.RandomApply([mix], config.mixup_prob)


def _device_augmentation(config: ClassificationConfig, model: Classifier) -> DeviceAugmentation:
    return DeviceAugmentation(
        mean=model.pretrained_cfg["mean"],
        std=model.pretrained_cfg["std"],
        aa=config.aa,
        color_jitter=config.color_jitter,
        reprob=config.reprob,
        remode=config.remode,
        recount=config.recount,
    )


def _criterion(config: ClassificationConfig, model: SpectralNet) -> Criterion:
    if config.token_label:
        require_token_grid(model, config.token_label_size)
        weights = config.cls_weight, config.dense_weight
        return TokenLabels(model.num_classes, *weights, config.smoothing, compile=config.compile)
    if config.distillation_type == "none":
        return CrossEntropy(config.smoothing)
    assert config.teacher_model is not None
    network = load_teacher(config.teacher_model, config.teacher_path, model.num_classes)
    teacher = Teacher(network, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    return Distillation(
        teacher, config.distillation_type, config.distillation_alpha, config.distillation_tau, config.smoothing
    )


def _unpack(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, dict):
        return batch["image"], torch.as_tensor(batch["target"])
    image, target = batch
    return image, target
