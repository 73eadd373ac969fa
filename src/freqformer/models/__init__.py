"""The models, registered with timm when this package is imported."""

from .backbone import SpectralNet
from .names import canonical_name, model_names, spelling

__all__ = ["SpectralNet", "canonical_name", "model_names", "spelling"]
