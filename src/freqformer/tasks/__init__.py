"""One LightningModule per task."""

from .classification import (
    Classification,
    ClassificationConfig,
    evaluation_samples,
    model_transform,
    require_size,
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
    "require",
    "require_size",
]
