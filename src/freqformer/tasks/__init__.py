"""One LightningModule per task."""

from .classification import (
    Classification,
    ClassificationConfig,
    evaluation_samples,
    model_transform,
    preprocessing,
    require_size,
    training_transform,
)
from .config import RunConfig, require
from .task import Task

__all__ = [
    "Classification",
    "ClassificationConfig",
    "RunConfig",
    "Task",
    "evaluation_samples",
    "model_transform",
    "preprocessing",
    "require",
    "require_size",
    "training_transform",
]
