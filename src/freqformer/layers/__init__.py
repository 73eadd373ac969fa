"""Modules on channels-last grids of tokens, (B, H, W, C) -> (B, H, W, C)."""

from .blocks import Block, Stage
from .mixers import Attention, GlobalFilter

__all__ = ["Attention", "Block", "GlobalFilter", "Stage"]
