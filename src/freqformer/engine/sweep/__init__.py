"""A protocol in one command: settings tuned on a validation split, then several seeds on all training images."""

from .config import CHOSEN, SweepConfig
from .protocol import sweep

__all__ = ["CHOSEN", "SweepConfig", "sweep"]
