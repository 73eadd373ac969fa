"""What is done with models: list them, convert their files, predict, the quickstart."""

from .convert import convert
from .listing import ModelRow, list_models
from .predict import Prediction, class_names, find_images, predict
from .quickstart import digits_config, quickstart

__all__ = [
    "ModelRow",
    "Prediction",
    "class_names",
    "convert",
    "digits_config",
    "find_images",
    "list_models",
    "predict",
    "quickstart",
]
