"""What runs on labelled images share: their data, their augmentation, how a model's images are prepared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from timm.layers import to_2tuple
from torch import nn
from torchvision.transforms import v2

from ..data import (
    DeviceAugmentation,
    Images,
    LabelMaps,
    Samples,
    eval_transform,
    open_images,
    train_transform,
)
from ..factory import Classifier
from .config import RunConfig, require
from .losses import Criterion, CrossEntropy

if TYPE_CHECKING:
    from .classification import Classification


@dataclass
class ImagesConfig(RunConfig):
    """A run on labelled images: data and augmentation besides what every run has."""

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
    interpolation: str | None = "bicubic"
    """How images are resized; none: as the model says."""
    train_interpolation: str | None = None
    """How images are resized in training, by default as in evaluation; random draws bilinear or bicubic."""
    augment_on_device: bool = False
    """Leave colours, normalisation and random erasing to the device, in whole batches; torchvision's operations."""

    def check(self) -> None:
        """Refuse settings outside their range; raises FreqFormerError."""
        super().check()
        for name in ("smoothing", "reprob", "hflip", "vflip", "mixup_prob", "mixup_switch_prob"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"--{name.replace('_', '-')}", "between 0 and 1", value)
        for name in ("mixup", "cutmix", "color_jitter"):
            value = getattr(self, name)
            require(value >= 0, f"--{name.replace('_', '-')}", "0 (off) or more", value)
        require(self.recount >= 1, "--recount", "at least 1", self.recount)
        require(self.remode in ("pixel", "rand", "const"), "--remode", "pixel, rand or const", self.remode)
        require(self.crop_pct is None or 0 < self.crop_pct <= 1, "--crop-pct", "above 0, at most 1", self.crop_pct)
        require(self.crop_padding is None or self.crop_padding >= 0, "--crop-padding", "0 or more", self.crop_padding)
        require(self.resize in ("random", "crop", "squash"), "--resize", "random, crop or squash", self.resize)
        require(
            self.resize != "squash" or self.crop_pct in (None, 1), "--crop-pct", "1 with --resize squash", self.crop_pct
        )
        require_size(self.input_size)

    def make_task(self, label_names: Sequence[str]) -> "Classification":
        """The task for data with these classes; every kind of run has its own."""
        raise TypeError(f"{type(self).__name__} belongs to no task: use that of a task, such as ClassificationConfig")

    def label_maps(self, train: Images) -> LabelMaps | None:
        """Labels of every place of the training images, for runs that learn from them."""
        return None

    def criterion(self, model: Any) -> Criterion:
        """What the model is trained on."""
        return CrossEntropy(self.smoothing)

    def mixing(self, classes: int) -> nn.Module | None:
        """What mixes a batch's images and targets."""
        choices = [
            (v2.MixUp, self.mixup, 1 - self.mixup_switch_prob),
            (v2.CutMix, self.cutmix, self.mixup_switch_prob),
        ]
        kinds = [(kind(alpha=alpha, num_classes=classes), share) for kind, alpha, share in choices if alpha > 0]
        if not kinds or self.mixup_prob == 0:
            return None
        transforms, shares = [kind for kind, _ in kinds], [share for _, share in kinds]
        mix = v2.RandomChoice(transforms, p=shares if len(kinds) > 1 else None)
        return mix if self.mixup_prob == 1 else v2.RandomApply([mix], self.mixup_prob)

    def build(self) -> tuple["Classification", Samples, Samples]:
        """The task and its training and validation samples.

        Raises:
            FreqFormerError: unusable data, or a model that cannot be made.
        """
        train = open_images(self.data_set, self.data_path, self.train_split, limit=self.limit_train)
        val = open_images(self.data_set, self.data_path, self.val_split, classes=train.classes)
        task = self.make_task(train.classes)
        task.val = val
        augment = training_transform(self, task.model.pretrained_cfg)
        samples = Samples(train, augment, seed=self.seed, label_maps=self.label_maps(train))
        return task, samples, evaluation_samples(task.model, val)


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


def training_transform(config: ImagesConfig, cfg: Mapping[str, Any]) -> Any:
    """The augmentation of a run for the input size and the normalisation of a model's ``pretrained_cfg``."""
    return train_transform(
        cfg["input_size"][1:],
        mean=cfg["mean"],
        std=cfg["std"],
        interpolation=config.train_interpolation or config.interpolation or cfg["interpolation"],
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


def preprocessing(config: ImagesConfig, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A model's ``pretrained_cfg`` with the evaluation that a run's config asks for."""
    changes: dict[str, Any] = {}
    if config.interpolation is not None:
        changes["interpolation"] = config.interpolation
    if config.crop_pct is not None:
        changes["crop_pct"] = config.crop_pct
    if config.resize == "squash":
        changes |= {"crop_mode": "squash", "crop_pct": 1.0}
    elif config.resize == "crop":
        changes["crop_mode"] = "center"
    return {**cfg, **changes}


def device_augmentation(config: ImagesConfig, model: Classifier) -> DeviceAugmentation:
    """A run's augmentation of whole batches, on the device."""
    return DeviceAugmentation(
        mean=model.pretrained_cfg["mean"],
        std=model.pretrained_cfg["std"],
        aa=config.aa,
        color_jitter=config.color_jitter,
        reprob=config.reprob,
        remode=config.remode,
        recount=config.recount,
    )
