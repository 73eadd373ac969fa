"""Fine-tuning in the frequency domain (FreqFit, Ly and Nguyen 2024), and other methods, on any timm model of blocks."""

from .attach import attach, detach_all, fold_all
from .handle import METHODS, Handle, handles, set_mode
from .storage import load

__all__ = ["METHODS", "Handle", "attach", "detach_all", "fold_all", "handles", "load", "set_mode"]
