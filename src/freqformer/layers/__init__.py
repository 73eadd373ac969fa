"""Modules on channels-last grids of tokens, (B, H, W, C) -> (B, H, W, C)."""

from .activations import SquaredReLU, StarReLU
from .blocks import Block, SpatialMlp, Stage
from .fitted import Fitted
from .heads import ClassBlock, MeanPool, MlpHead
from .mixers import AFNO, Attention, DepthwiseConv, DynamicFilter, GlobalFilter, Widened
from .stems import ConvStem, Shrink

__all__ = [
    "AFNO",
    "Attention",
    "Block",
    "ClassBlock",
    "ConvStem",
    "DepthwiseConv",
    "DynamicFilter",
    "Fitted",
    "GlobalFilter",
    "MeanPool",
    "MlpHead",
    "Shrink",
    "SpatialMlp",
    "SquaredReLU",
    "Stage",
    "StarReLU",
    "Widened",
]
