"""Spectral operations on grids of tokens; this floor needs torch alone."""

from .global_filter import global_filter
from .lowering import LOWERINGS, use_lowering
from .resample import stretch_filter, stretch_position

__all__ = ["LOWERINGS", "global_filter", "stretch_filter", "stretch_position", "use_lowering"]
