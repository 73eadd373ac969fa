"""Token mixers: modules that move information between the positions of a grid (B, H, W, C) -> (B, H, W, C)."""

import timm.layers
import torch
from torch import Tensor, nn

from ..ops import global_filter, stretch_filter

Grid = tuple[int, int]


class GlobalFilter(nn.Module):
    """One learned complex filter per channel, as large as the native grid (GFNet, Rao et al. 2021).

    On another grid the filter is resampled by *stretch*.

    Args:
        dim: channels C.
        grid: native (H, W) in tokens; the parameter ``complex_weight`` is (H, W//2+1, C, 2).
    """

    def __init__(self, dim: int, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.complex_weight = nn.Parameter(torch.empty(grid[0], grid[1] // 2 + 1, dim, 2))
        nn.init.normal_(self.complex_weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Filter the grid ``x`` (B, H, W, C)."""
        grid = (x.shape[1], x.shape[2])
        weight = self.complex_weight if grid == self.grid else stretch_filter(self.complex_weight, grid)
        return global_filter(x, weight)

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return f"dim={self.complex_weight.shape[2]}, grid={self.grid}"


class Attention(timm.layers.Attention):
    """Multi-head self-attention over all tokens of a grid."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Attend within each grid ``x`` (B, H, W, C)."""
        return super().forward(x.flatten(1, 2)).view_as(x)
