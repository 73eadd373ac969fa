"""Fit a filter or a position embedding to another grid."""

import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]


def stretch_filter(weight: Tensor, grid: Grid) -> Tensor:
    """Fit a filter to a grid by *stretch*: bicubic interpolation of the raw half-spectrum, corners aligned.

    This is what GFNet's official code does when the input size changes; it keeps cycles per token.

    Args:
        weight: complex filter as a real view (H, F, C, 2).
        grid: the new (H, W) in tokens.

    Returns:
        Tensor (H', W'//2+1, C, 2).
    """
    height, columns, channels, parts = weight.shape
    planes = weight.permute(2, 3, 0, 1).reshape(1, channels * parts, height, columns)
    size = (grid[0], grid[1] // 2 + 1)
    planes = F.interpolate(planes, size=size, mode="bicubic", align_corners=True)
    return planes.reshape(channels, parts, *size).permute(2, 3, 0, 1).contiguous()


def stretch_position(embedding: Tensor, grid: Grid) -> Tensor:
    """Fit a position embedding (1, H, W, C) to a grid (H', W') by bicubic interpolation, corners not aligned."""
    planes = embedding.permute(0, 3, 1, 2)
    planes = F.interpolate(planes, size=grid, mode="bicubic", align_corners=False)
    return planes.permute(0, 2, 3, 1).contiguous()
