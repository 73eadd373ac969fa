"""Fit a filter or a position embedding to another grid."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from . import dft
from .constants import plain_tensors
from .precision import compute_dtype, without_autocast

Grid = tuple[int, int]

RESAMPLINGS = ("stretch", "crop-pad")


def fit_filter(weight: Tensor, grid: Grid, native: Grid, resample: str) -> Tensor:
    """Fit a complex filter (H, F, C, 2) to a grid from its native one, by ``"stretch"`` or ``"crop-pad"``."""
    if resample == "stretch":
        return stretch_filter(weight, grid)
    return crop_pad_filter(weight, native, grid)


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


def crop_pad_filter(weight: Tensor, native: Grid, grid: Grid) -> Tensor:
    """Fit a filter to a grid by *crop-pad*: its impulse response keeps its footprint in tokens.

    The response is centred on zero shift and cut or filled with zeros. What lies half an even side away stands
    for both directions and is shared between them, so that symmetric responses stay symmetric.

    Args:
        weight: complex filter as a real view (H, F, C, 2), F = W//2+1.
        native: (H, W) in tokens of the grid it belongs to.
        grid: the new (H, W) in tokens.

    Returns:
        Tensor (H', W'//2+1, C, 2).
    """
    dtype = compute_dtype(weight)
    with without_autocast(weight):
        response = dft.inverse(weight.to(dtype).permute(0, 3, 1, 2).unsqueeze(0), native[1])[0]
        rows = _crop_pad(native[0], grid[0]).to(response)
        columns = _crop_pad(native[1], grid[1]).to(response)
        response = torch.einsum("nh,mw,hwc->nmc", rows, columns, response)
        fitted = dft.transform(response.unsqueeze(0))[0].permute(0, 2, 3, 1)
    # Ortho-scaled transforms of another length: the response itself must not be rescaled.
    return (math.sqrt(grid[0] * grid[1] / (native[0] * native[1])) * fitted).to(weight.dtype).contiguous()


@lru_cache(maxsize=64)
def _crop_pad(length: int, new: int) -> Tensor:
    """The matrix (new, length) that takes circular positions to those of the same signed shift."""
    rows = [[0.0] * length for _ in range(new)]
    for position in range(length):
        forward, backward = position, position - length
        halves = [(forward, 0.5), (backward, 0.5)] if forward == -backward else [(min(forward, backward, key=abs), 1.0)]
        for shift, share in halves:
            if 2 * abs(shift) <= new:
                rows[shift % new][position] += share
    with plain_tensors():
        return torch.tensor(rows, dtype=torch.float64, device="cpu")


def stretch_position(embedding: Tensor, grid: Grid) -> Tensor:
    """Fit a position embedding (1, H, W, C) to a grid (H', W') by bicubic interpolation, corners not aligned."""
    planes = embedding.permute(0, 3, 1, 2)
    planes = F.interpolate(planes, size=grid, mode="bicubic", align_corners=False)
    return planes.permute(0, 2, 3, 1).contiguous()
