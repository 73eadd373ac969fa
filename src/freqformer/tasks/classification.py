"""Image classification."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from ..data import Images, LabelMaps, UnreadableImage
from ..factory import Classifier, create_model, describe_model
from ..models import SpectralNet, canonical_name, load_checkpoint
from ..tables import write_csv
from ..teachers import Teacher, load_teacher
from .config import require
from .extremes import CONFUSIONS, EXAMPLES, Example, Extremes
from .images import ImagesConfig, device_augmentation, preprocessing
from .losses import Criterion, Distillation, TokenLabels, require_token_grid
from .task import Batch, Task

_EXTREMES = 16
_PAIRS = 20


@dataclass
class ClassificationConfig(ImagesConfig):
    """A classification run: model, teachers and token labels besides data and augmentation."""

    arch: str = "freqformer_n"
    """The model's name; `freqformer models` lists them."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Further keywords of the model, such as num_heads or spectral_depth."""
    finetune: str | None = None
    """Start from these weights; filters and position embedding are resampled to the input size."""
    drop: float = 0.0
    """Dropout before the classifier."""
    drop_path: float | None = None
    """Stochastic depth; by default the variant's published rate."""
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
        for name in ("drop", "drop_path", "distillation_alpha"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"--{name.replace('_', '-')}", "between 0 and 1", value)
        for name in ("dense_weight", "cls_weight"):
            value = getattr(self, name)
            require(value >= 0, f"--{name.replace('_', '-')}", "0 (off) or more", value)
        self._check_teaching()

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

    def make_task(self, label_names: Sequence[str]) -> "Classification":
        """The task, with the weights to start from; raises FreqFormerError for an unknown model or unfit weights."""
        task = Classification(self, label_names=label_names)
        if self.finetune is not None:
            load_checkpoint(task.model, self.finetune)
        return task

    def label_maps(self, train: Images) -> LabelMaps | None:
        """The label maps of the training images, where there are some."""
        if self.token_label_data is None:
            return None
        maps = LabelMaps(self.token_label_data, self.data_path, len(train.classes))
        # A missing folder of maps, or maps of other images, are told before the first step.
        maps.load(train.name(0))
        return maps

    def mixing(self, classes: int) -> nn.Module | None:
        """What mixes a batch; label maps say what lies where, and mix-token takes the place of mixing pixels."""
        return None if self.token_label_data is not None else super().mixing(classes)

    def criterion(self, model: SpectralNet) -> Criterion:
        """Token labels, a teacher's opinion, or cross-entropy."""
        if self.token_label:
            require_token_grid(model, self.token_label_size)
            weights = self.cls_weight, self.dense_weight
            return TokenLabels(model.num_classes, *weights, self.smoothing, compile=self.compile)
        if self.distillation_type == "none":
            return super().criterion(model)
        assert self.teacher_model is not None
        network = load_teacher(self.teacher_model, self.teacher_path, model.num_classes)
        teacher = Teacher(network, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
        return Distillation(
            teacher, self.distillation_type, self.distillation_alpha, self.distillation_tau, self.smoothing
        )

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
    config: ImagesConfig
    model: SpectralNet

    def __init__(
        self,
        config: ImagesConfig,
        *,
        num_classes: int | None = None,
        label_names: Sequence[str] | None = None,
        model: Classifier | None = None,
    ) -> None:
        label_names = None if label_names is None else list(label_names)
        if model is None:
            assert isinstance(config, ClassificationConfig)
            model = _make_model(config, num_classes or (len(label_names) if label_names else 1000))
        super().__init__(config, model)
        self.label_names = label_names
        self.mix = config.mixing(model.num_classes)
        self.augment = device_augmentation(config, model) if config.augment_on_device else None
        self.criterion = config.criterion(self.model)
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
        self.val: Images | None = None
        """What is evaluated on, where the best and the worst images are to be shown; batches then have ``index``."""
        self._extremes = Extremes(_EXTREMES)

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
        """Forget the last evaluation."""
        self.confusion.reset()
        self._extremes = Extremes(_EXTREMES)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch."""
        image, target = _unpack(batch)
        if len(target) == 0:
            # None of its images could be read, or only other processes have some left; they wait for this forward.
            if self.trainer.world_size > 1:
                self.model(torch.zeros(1, *self.model.pretrained_cfg["input_size"], device=self.device))
            return
        logits = self.model(image).float()
        losses = F.cross_entropy(logits, target, reduction="none")
        self.val_loss.update(losses)
        self.val_metrics.update(logits, target)
        self.confusion.update(logits, target)
        if self.keeps_examples and self.val is not None and isinstance(batch, dict) and "index" in batch:
            self._watch(batch["index"], losses, logits, target)
        self.log("val/loss", self.val_loss)
        self.log_dict(self.val_metrics, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Add up what all processes have seen."""
        self.counts = self.confusion.compute().cpu()
        self._extremes.agree(self.gathered)

    def _watch(self, indices: Any, losses: Tensor, logits: Tensor, target: Tensor) -> None:
        """Keep the images of the smallest and the largest losses."""
        probabilities, predicted = logits.softmax(-1).max(-1)
        # One copy from the device, not one for each.
        columns = torch.stack([column.float() for column in (losses, probabilities, target, predicted)]).tolist()
        for index, loss, probability, *classes in zip(torch.as_tensor(indices).tolist(), *columns, strict=True):
            found = [*map(int, classes), probability]
            self._extremes.add(loss, index, lambda found=found: found)  # type: ignore[misc]

    def per_class(self) -> list[dict[str, Any]]:
        """Name, number of images and accuracy of each class over the last evaluation."""
        counts = self.counts
        names = self._names()
        return [
            {
                "class": name,
                "images": int(row.sum()),
                "accuracy": float(row[i] / row.sum()) if row.sum() else None,
            }
            for i, (name, row) in enumerate(zip(names, counts, strict=True))
        ]

    def confusions(self) -> list[dict[str, Any]]:
        """The pairs of classes that are most often taken for one another over the last evaluation, and how often."""
        true, predicted = self.counts.nonzero(as_tuple=True)
        wrong = true != predicted
        true, predicted = true[wrong], predicted[wrong]
        images = self.counts[true, predicted]
        order = images.argsort(descending=True, stable=True)[:_PAIRS]
        names = self._names()
        rows = zip(true[order].tolist(), predicted[order].tolist(), images[order].tolist(), strict=True)
        return [{"true": names[one], "predicted": names[other], "images": count} for one, other, count in rows]

    def draw(self, folder: Path) -> None:
        """Draw the last evaluation into a folder: ``confusion.png``, for up to 100 classes, and ``best.png`` and
        ``worst.png``, the images of the smallest and the largest losses."""
        from .pictures import draw_confusion, draw_predictions

        counts, names = self.counts, self._names()
        if len(counts) <= 100:
            draw_confusion(counts.numpy(), names, folder / "confusion.png")
        for name, examples in self._examples():
            shown = []
            for example in examples:
                assert self.val is not None
                try:
                    image = self.val.load(example.index)
                except UnreadableImage:
                    # It could be read when it was evaluated.
                    continue
                true, predicted, probability = example.found
                shown.append((image, names[predicted], probability, names[true]))
            if shown:
                images, predictions, probabilities, truth = zip(*shown, strict=True)
                draw_predictions(images, predictions, probabilities, truth, folder / f"{name}.png")

    def keep(self, folder: Path) -> None:
        """Write each class's accuracy, the pairs of classes that are most often taken for one another, and the images
        of the smallest and the largest losses."""
        write_csv(folder / "per_class.csv", self.per_class())
        if pairs := self.confusions():
            write_csv(folder / CONFUSIONS, pairs)
        names = self._names()
        rows = []
        for name, examples in self._examples():
            for number, example in enumerate(examples, 1):
                assert self.val is not None
                true, predicted, probability = example.found
                row = {"place": f"{name} {number}", "image": self.val.name(example.index)}
                row |= {"truth": names[true], "predicted": names[predicted], "probability": probability}
                rows.append({**row, "loss": example.value})
        if rows:
            write_csv(folder / EXAMPLES, rows)

    def _examples(self) -> Iterator[tuple[str, list[Example]]]:
        if self.val is not None:
            yield "best", self._extremes.smallest()
            yield "worst", self._extremes.largest()

    def _names(self) -> list[str]:
        return self.label_names or [str(i) for i in range(len(self.counts))]

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of its model, in the fields of timm's ``config.json``."""
        arguments = getattr(self.config, "model_args", {})
        return describe_model(self.model, arguments, self.label_names)


def _make_model(config: ClassificationConfig, num_classes: int) -> SpectralNet:
    arguments: dict[str, Any] = {"num_classes": num_classes, "drop_rate": config.drop, **config.model_args}
    if config.input_size is not None:
        arguments["img_size"] = to_2tuple(config.input_size)
    if config.drop_path is not None:
        arguments["drop_path_rate"] = config.drop_path
    model = create_model(config.arch, **arguments)
    model.pretrained_cfg = preprocessing(config, model.pretrained_cfg)
    return model


def _unpack(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, dict):
        return batch["image"], torch.as_tensor(batch["target"])
    image, target = batch
    return image, target
