"""The registered models; importing this module makes them known to timm."""

from .backbone import SpectralNet
from .loading import LoadReport, load_checkpoint
from .names import canonical_name, model_names, published, spelling

__all__ = ["LoadReport", "SpectralNet", "canonical_name", "load_checkpoint", "model_names", "published", "spelling"]
