"""One LightningModule per task; those of detection and segmentation, which need the extra `dense`, on first use."""

from importlib import import_module
from typing import Any

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

_DENSE = {
    "Detection": "detection",
    "DetectionConfig": "detection",
    "Segmentation": "segmentation",
    "SegmentationConfig": "segmentation",
}


def __getattr__(name: str) -> Any:
    if name in _DENSE:
        return getattr(import_module(f"{__name__}.{_DENSE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
