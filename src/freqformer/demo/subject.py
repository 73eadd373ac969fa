"""The model that the page is about: a classifier, a detector or a segmenter."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints import read_description
from ..data import printable
from ..dense import load_dense
from ..errors import FreqFormerError
from ..factory import DENSE_COMMANDS, load_classifier
from ..onnx_model import OnnxModel
from ..tools import class_names

_NOUNS = {"classification": "a classifier", "detection": "a detector", "segmentation": "a segmenter"}


@dataclass(frozen=True)
class Subject:
    """A model and what its checkpoint says of it."""

    name: str
    """What people call it: the end of the checkpoint's path, as visitors need not know where it lies."""
    task: str
    """``classification``, ``detection`` or ``segmentation``."""
    model: Any
    """In evaluation mode."""
    labels: list[str]
    """The names of its classes, printable: pages and their JSON have no place for a name's undecodable bytes."""
    about: dict[str, Any] = field(default_factory=dict)
    """Of a detector or a segmenter, its checkpoint's description."""

    @property
    def is_onnx(self) -> bool:
        """Whether it is an exported file, whose layers cannot be looked into."""
        return isinstance(self.model, OnnxModel)

    def introduction(self) -> str:
        """The model in a line."""
        parts = [_NOUNS[self.task]]
        architecture = self.about.get("architecture") or getattr(self.model, "pretrained_cfg", {}).get("architecture")
        if architecture:
            parts[0] += f" with {architecture}"
        if weights := sum(parameter.numel() for parameter in self.model.parameters()):
            parts.append(f"{weights / 1e6:.2g} M parameters")
        parts.append(f"{len(self.labels)} {'class' if len(self.labels) == 1 else 'classes'}")
        if self.task == "classification":
            height, width = self.model.pretrained_cfg["input_size"][1:]
            parts.append(f"images of {width}×{height} pixels")
        return printable(", ".join(parts))


def load(path: str | Path, arch: str | None = None) -> Subject:
    """Load the model of a page.

    Args:
        path: a run's folder, a checkpoint of any task, or an exported ``.onnx`` file of a classifier.
        arch: the model's name, for a file of bare weights.

    Raises:
        FreqFormerError: an unusable checkpoint, or a model without classes.
    """
    name = "/".join(Path(path).parts[-2:])
    description = None if Path(path).suffix == ".onnx" else read_description(path)
    task = description.get("task", "classification") if isinstance(description, dict) else "classification"
    if task in DENSE_COMMANDS:
        model, about = load_dense(path, task)
        model.label_names = [*map(printable, model.label_names)]
        return Subject(name, task, model, model.label_names, about)
    classifier = load_classifier(path, arch=arch)
    labels = class_names(classifier)
    if not labels:
        raise FreqFormerError(f"{path} has no classifier: name a checkpoint with classes")
    return Subject(name, "classification", classifier.eval(), [*map(printable, labels)])
