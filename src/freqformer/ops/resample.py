"""Fit a filter or a position embedding to another grid."""

import torch.nn.functional as F
from torch import Tensor

from . import dft
from .precision import compute_dtype, without_autocast
from .symbolic import crop_pad_matrix, is_symbolic, stretch_matrix

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
    size = (grid[0], grid[1] // 2 + 1)
    return _stretch(weight.reshape(height, columns, channels * parts), size, True).unflatten(2, (channels, parts))


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
        rows, columns = (crop_pad_matrix(*lengths, weight.device) for lengths in zip(native, grid, strict=True))
        response = _apply(rows, columns, response)
        return dft.transform(response.unsqueeze(0))[0].permute(0, 2, 3, 1).to(weight.dtype).contiguous()


def stretch_position(embedding: Tensor, grid: Grid) -> Tensor:
    """Fit a position embedding (1, H, W, C) to a grid (H', W') by bicubic interpolation, corners not aligned."""
    return _stretch(embedding[0], grid, False).unsqueeze(0)


def _stretch(values: Tensor, size: Grid, align_corners: bool) -> Tensor:
    """Bicubic interpolation of (H, W, C) to (H', W', C)."""
    if is_symbolic(*size):
        sides = zip(values.shape, size, strict=False)
        rows, columns = (stretch_matrix(*side, values.device, align_corners=align_corners) for side in sides)
        return _apply(rows, columns, values)
    planes = F.interpolate(values.permute(2, 0, 1).unsqueeze(0), size=size, mode="bicubic", align_corners=align_corners)
    return planes[0].permute(1, 2, 0).contiguous()


def _apply(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """Matrices (H', H) and (W', W) on values (H, W, C): (H', W', C)."""
    mixed = (rows.to(values.dtype) @ values.flatten(1)).unflatten(1, values.shape[1:])
    return columns.to(values.dtype) @ mixed
