"""Fine-tuning in the frequency domain (FreqFit, Ly and Nguyen 2024), and other methods, on any timm model of blocks."""

from .attach import attach, describe_all, detach_all, fold_all, reattach
from .encoders import ENCODERS, make_encoder
from .handle import METHODS, Handle, handles, set_mode
from .storage import load, save_all

__all__ = [
    "ENCODERS",
    "METHODS",
    "Handle",
    "attach",
    "describe_all",
    "detach_all",
    "fold_all",
    "handles",
    "load",
    "make_encoder",
    "reattach",
    "save_all",
    "set_mode",
]
