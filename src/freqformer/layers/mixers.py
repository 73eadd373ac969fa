"""Token mixers: modules that move information between the positions of a grid (B, H, W, C) -> (B, H, W, C)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import global_filter, stretch_filter

Grid = tuple[int, int]

# torch's fused attention is slow on a CPU for few tokens: a training step of freqformer_n, 64 tokens, takes
# 1.3 to 1.5 times as long with it.
_PLAIN_ATTENTION_MAX_TOKENS = 256


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


class Attention(nn.Module):
    """Multi-head self-attention over all tokens of a grid.

    Args:
        dim: channels C.
        num_heads: heads, a divisor of C.

    Raises:
        ValueError: the heads do not divide the channels.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide the {dim} channels, got {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each grid ``x`` (B, H, W, C)."""
        batch, height, width, channels = x.shape
        tokens = height * width
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if x.device.type == "cpu" and tokens <= _PLAIN_ATTENTION_MAX_TOKENS:
            scores = (q * (channels // self.num_heads) ** -0.5) @ k.transpose(-2, -1)
            y = scores.softmax(dim=-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, height, width, channels))
