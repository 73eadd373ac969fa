"""Networks for detection, instance segmentation and semantic segmentation on the features of any backbone."""

from .backbone import STRIDES, Backbone, make_backbone
from .detector import DETECTORS, Detector, create_detector
from .segmenter import DECODERS, Segmenter, create_segmenter
from .storage import describe_dense, load_dense

__all__ = [
    "DECODERS",
    "DETECTORS",
    "STRIDES",
    "Backbone",
    "Detector",
    "Segmenter",
    "create_detector",
    "create_segmenter",
    "describe_dense",
    "load_dense",
    "make_backbone",
]
