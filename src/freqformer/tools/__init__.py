"""What is done with models: list them, convert their files, export, predict, label maps, the quickstart."""

from .convert import convert
from .export import ExportReport, export
from .labelmaps import LabelMapsConfig, LabelMapsReport, make_label_maps
from .listing import ModelRow, list_models
from .predict import Prediction, class_names, find_images, predict
from .quickstart import digits_config, quickstart

__all__ = [
    "ExportReport",
    "LabelMapsConfig",
    "LabelMapsReport",
    "ModelRow",
    "Prediction",
    "class_names",
    "convert",
    "digits_config",
    "export",
    "find_images",
    "list_models",
    "make_label_maps",
    "predict",
    "quickstart",
]
