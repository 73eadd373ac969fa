"""What runs of detection and segmentation share: the backbone, the data's folder, and what a checkpoint says."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..data import Instances, Scenes, UnreadableImage
from ..dense import Detector, Segmenter, describe_dense
from ..models import model_names, spelling
from ..tables import write_csv
from .config import RunConfig, require
from .dense_pictures import Colour, page
from .extremes import EXAMPLES, Example, Extremes
from .images import require_size
from .task import Task

_EXTREMES = 4


@dataclass
class DenseConfig(RunConfig):
    """A run on the features of a backbone: model and data besides what every run has."""

    arch: str = "gfnet_h_ti"
    """The backbone: a model of this package (`freqformer models` lists them) or of timm."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Further keywords of the backbone, such as embed_dims."""
    backbone_weights: str | None = None
    """Start from this classification checkpoint; filters are resampled to the native size."""
    pretrained: bool = False
    """Start from the backbone's published weights."""
    native_size: int | tuple[int, int] | None = None
    """Image side in pixels, or [height, width], that the backbone's filters and position embedding are kept for; others
    are resampled as images come. By default the backbone's own."""
    drop_path: float | None = 0.0
    """Stochastic depth of the backbone; none: the variant's published rate."""
    data_path: str | None = None
    """The folder the data set lies in."""
    train_split: str = "train"
    """What to train on."""
    val_split: str = "val"
    """What to evaluate on."""
    limit_train: int | None = None
    """Train on this many images only."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation."""
    lr_base_batch: int | None = 16
    """The batch that lr is meant for; none takes lr as it is."""
    min_lr: float = 0.0
    """Learning rate at the end of the schedule."""
    weight_decay: float = 0.05
    """Weight decay; norms, biases and position embeddings have none without --decay-all."""
    decay_all: bool = True
    """Weight decay of norms, biases and position embeddings too."""
    clip_grad: float | None = None
    """Largest gradient norm; none does not clip."""

    def check(self) -> None:
        """Refuse settings outside their range; raises FreqFormerError."""
        super().check()
        for name in ("hflip", "drop_path", "color_jitter"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"--{name.replace('_', '-')}", "between 0 and 1", value)
        require(self.limit_train is None or self.limit_train >= 1, "--limit-train", "at least 1", self.limit_train)
        require(
            self.layer_decay is None, "--layer-decay", "none: detectors and segmenters have no layers", self.layer_decay
        )
        require_dense(self.strategy, self.precision)
        both = self.pretrained and self.backbone_weights is not None
        require(not both, "--pretrained", "left out with --backbone-weights", self.backbone_weights)
        require_size(self.native_size)

    def backbone(self) -> dict[str, Any]:
        """The keywords of `create_detector` and `create_segmenter` that say which backbone."""
        arguments = dict(self.model_args)
        # Of timm's models those without stochastic depth refuse the keyword, and the others have none by default.
        if self.drop_path is not None and (self.drop_path or spelling(self.arch) in model_names()):
            arguments["drop_path_rate"] = self.drop_path
        return {
            "arch": self.arch,
            "native_size": self.native_size,
            "backbone_weights": self.backbone_weights,
            "pretrained": self.pretrained,
            "model_args": arguments,
        }


def require_dense(strategy: str, precision: str) -> None:
    """Raise FreqFormerError for a strategy or a precision that classifiers alone have."""
    require(strategy != "fsdp", "--strategy", "ddp: only classifiers are sharded", strategy)
    # Weights in half precision would meet images and boxes in float32.
    mixed = ("auto", "32", "32-true", "bf16-mixed", "16-mixed")
    require(precision in mixed, "--precision", "auto, 32-true, bf16-mixed or 16-mixed", precision)


class DenseTask(Task):
    """What the tasks of detection and segmentation share; see `Task`.

    Args:
        config: the run's settings.
        model: the detector or segmenter.
        val: what is evaluated on.
        about: what else its checkpoints are to say, plain containers alone.
    """

    model: Any
    val: Any
    score: str
    """What `image_scores` says of an image."""

    def __init__(
        self,
        config: DenseConfig,
        model: Detector | Segmenter,
        val: Instances | Scenes,
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(config, model)
        self.val = val
        self.about = about or {}
        self.extremes = Extremes(_EXTREMES)
        """The images of the last evaluation that were predicted worst (smallest) and best."""

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of its model."""
        return describe_dense(self.model, **self.about)

    def examples(self) -> Iterator[tuple[str, list[Example]]]:
        """The best and the worst predictions of the last evaluation, by name."""
        yield "best", self.extremes.largest()
        yield "worst", self.extremes.smallest()

    @abstractmethod
    def pictures(self, example: Example) -> list[Image.Image]:
        """An image as it is annotated, and as it was predicted."""

    def draw_examples(self, folder: Path, titles: list[str], legend: dict[str, Colour]) -> None:
        """Write ``best.png`` and ``worst.png``."""
        for name, examples in self.examples():
            rows = []
            for example in examples:
                try:
                    rows.append(self.pictures(example))
                except UnreadableImage:
                    # It could be read when it was evaluated.
                    continue
            if rows:
                page(rows, titles, folder / f"{name}.png", legend=legend)

    def keep(self, folder: Path) -> None:
        """Write which images were predicted best and worst."""
        rows = [
            {"place": f"{name} {number}", "image": self.val.name(example.index), self.score: example.value}
            for name, examples in self.examples()
            for number, example in enumerate(examples, 1)
        ]
        if rows:
            write_csv(folder / EXAMPLES, rows)
