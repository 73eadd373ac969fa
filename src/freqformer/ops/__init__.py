"""Spectral operations on grids of tokens; this floor needs torch alone."""

from .afno import afno
from .dynamic_filter import dynamic_filter
from .global_filter import global_filter
from .lowering import LOWERINGS, use_lowering
from .resample import RESAMPLINGS, crop_pad_filter, fit_filter, stretch_filter, stretch_position
from .symbolic import is_symbolic

__all__ = [
    "LOWERINGS",
    "RESAMPLINGS",
    "afno",
    "crop_pad_filter",
    "dynamic_filter",
    "fit_filter",
    "global_filter",
    "is_symbolic",
    "stretch_filter",
    "stretch_position",
    "use_lowering",
]
