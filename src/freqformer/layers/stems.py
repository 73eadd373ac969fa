"""What makes a grid of tokens: from an image, and from a finer grid. All are (B, H, W, C) -> (B, H', W', C')."""

from math import ceil

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import is_symbolic

Grid = tuple[int, int]


class Shrink(nn.Module):
    """A strided convolution, with a norm before or after it.

    One whose kernel is its stride cuts patches: what these do not divide is padded with zeros at the bottom and
    the right. Overlapping kernels keep their own arithmetic.

    Args:
        in_dim: channels C.
        dim: channels C'.
        kernel_size: side of the kernel.
        stride: its stride.
        padding: zeros on each side.
        pre_norm: norm of C channels before it.
        post_norm: norm of C' channels after it.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        kernel_size: int,
        stride: int,
        padding: int = 0,
        pre_norm: nn.Module | None = None,
        post_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm or nn.Identity()
        self.proj = nn.Conv2d(in_dim, dim, kernel_size, stride, padding)
        self.post_norm = post_norm or nn.Identity()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def grid(self, size: Grid) -> Grid:
        """The (H', W') that it makes of (H, W)."""
        if self.kernel_size == self.stride:
            return ceil(size[0] / self.stride), ceil(size[1] / self.stride)
        height, width = ((side + 2 * self.padding - self.kernel_size) // self.stride + 1 for side in size)
        return height, width

    def forward(self, x: Tensor) -> Tensor:
        """Shrink the grid ``x`` (B, H, W, C)."""
        x = self.pre_norm(x).permute(0, 3, 1, 2)
        if self.kernel_size == self.stride:
            x = F.pad(x, (0, self._missing(x.shape[3]), 0, self._missing(x.shape[2])))
        return self.post_norm(self.proj(x).permute(0, 2, 3, 1))

    def _missing(self, side: int) -> int:
        """Zeros that make a side divisible; of a symbol as many as any needs, the convolution leaves out the rest."""
        return self.stride - 1 if is_symbolic(side) else -side % self.stride


class ConvStem(nn.Module):
    """Three convolutions at half resolution, then one to a quarter: SpectFormer's hierarchical stem.

    Args:
        in_dim: image channels.
        hidden: channels of the first three.
        dim: channels of the grid.
    """

    stride = 4

    def __init__(self, in_dim: int, hidden: int, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for source, kernel_size, stride in ((in_dim, 7, 2), (hidden, 3, 1), (hidden, 3, 1)):
            conv = nn.Conv2d(source, hidden, kernel_size, stride, padding=kernel_size // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)]
        self.conv = nn.Sequential(*layers)
        self.shrink = Shrink(hidden, dim, kernel_size=3, stride=2, padding=1, post_norm=nn.LayerNorm(dim))

    def grid(self, size: Grid) -> Grid:
        """The (H', W') that it makes of (H, W)."""
        return self.shrink.grid(((size[0] + 1) // 2, (size[1] + 1) // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, H, W, C) to a grid."""
        return self.shrink(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
