"""One LightningModule per task."""

from .adaptation import Adaptation, AdaptationConfig
from .classification import Classification, ClassificationConfig
from .config import RunConfig, require
from .images import (
    ImagesConfig,
    evaluation_samples,
    model_transform,
    preprocessing,
    require_size,
    training_transform,
)
from .task import Task

__all__ = [
    "Adaptation",
    "AdaptationConfig",
    "Classification",
    "ClassificationConfig",
    "ImagesConfig",
    "RunConfig",
    "Task",
    "evaluation_samples",
    "model_transform",
    "preprocessing",
    "require",
    "require_size",
    "training_transform",
]
