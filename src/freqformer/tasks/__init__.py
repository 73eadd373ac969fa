"""One LightningModule per task."""

from .classification import Classification, ClassificationConfig, evaluation_samples, model_transform
from .config import RunConfig
from .task import Task

__all__ = [
    "Classification",
    "ClassificationConfig",
    "RunConfig",
    "Task",
    "evaluation_samples",
    "model_transform",
]
