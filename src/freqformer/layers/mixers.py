"""Token mixers: modules that move information between the positions of a grid (B, H, W, C) -> (B, H, W, C)."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models import register_notrace_module
from torch import Tensor, nn

from ..ops import RESAMPLINGS, afno, dynamic_filter, fit_filter, global_filter, is_symbolic
from .activations import StarReLU
from .fitted import Fitted

Grid = tuple[int, int]

# Mixers choose by shapes and devices, which symbolic tracing does not know: to it they are leaves.

# torch's fused attention is slow on a CPU for few tokens: a training step of freqformer_n, 64 tokens, takes
# 1.3 to 1.5 times as long with it.
_PLAIN_ATTENTION_MAX_TOKENS = 256


class _Filters(nn.Module):
    """Complex filters as large as the native grid, fitted to whatever grid arrives.

    Args:
        filters: how many; a channel each, or a bank.
        grid: native (H, W) in tokens; the parameter ``complex_weight`` is (H, W//2+1, filters, 2).
        resample: ``"stretch"`` or ``"crop-pad"``.

    Raises:
        ValueError: there is no such resampling.
    """

    def __init__(self, filters: int, grid: Grid, resample: str) -> None:
        super().__init__()
        if resample not in RESAMPLINGS:
            raise ValueError(f"there is no resampling {resample!r}: choose one of {', '.join(RESAMPLINGS)}")
        self.grid = grid
        self.resample = resample
        self.complex_weight = nn.Parameter(torch.empty(grid[0], grid[1] // 2 + 1, filters, 2))
        nn.init.normal_(self.complex_weight, std=0.02)
        self.fitted = Fitted(grid, partial(fit_filter, native=grid, resample=resample))

    def weight_for(self, x: Tensor) -> Tensor:
        """The filters on the grid of ``x`` (B, H, W, C): (H, W//2+1, filters, 2)."""
        return self.fitted(self.complex_weight, (x.shape[1], x.shape[2]))

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return f"filters={self.complex_weight.shape[2]}, grid={self.grid}, resample={self.resample!r}"


@register_notrace_module
class GlobalFilter(_Filters):
    """One learned complex filter per channel, as large as the native grid (GFNet, Rao et al. 2021).

    Args:
        dim: channels C.
        grid: native (H, W) in tokens; the parameter ``complex_weight`` is (H, W//2+1, C, 2).
        resample: how it is fitted to other grids, ``"stretch"`` or ``"crop-pad"``.

    Raises:
        ValueError: there is no such resampling.
    """

    def __init__(self, dim: int, grid: Grid, resample: str = "stretch") -> None:
        super().__init__(dim, grid, resample)

    def forward(self, x: Tensor) -> Tensor:
        """Filter the grid ``x`` (B, H, W, C)."""
        return global_filter(x, self.weight_for(x))


@register_notrace_module
class DynamicFilter(_Filters):
    """A mixture of K learned filters for each sample and channel (DFFormer, Tatsunami and Taki 2024).

    Args:
        dim: channels C of the grid that is filtered.
        context: channels of the grid whose mean chooses the mixture.
        grid: native (H, W) in tokens; the parameter ``complex_weight`` is the bank, (H, W//2+1, K, 2).
        num_filters: K.
        routing_ratio: hidden channels of the routing's perceptron over ``context``.
        resample: how the bank is fitted to other grids, ``"stretch"`` or ``"crop-pad"``.

    Raises:
        ValueError: there is no such resampling.
    """

    def __init__(
        self,
        dim: int,
        context: int,
        grid: Grid,
        num_filters: int = 4,
        routing_ratio: float = 0.25,
        resample: str = "stretch",
    ) -> None:
        super().__init__(num_filters, grid, resample)
        self.num_filters = num_filters
        self.routing = Mlp(context, int(routing_ratio * context), num_filters * dim, act_layer=StarReLU, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Filter ``x`` (B, H, W, C) by the mixtures that ``context`` (B, H, W, C') chooses."""
        shares = self.shares(self.routing(context.mean(dim=(1, 2))))
        return dynamic_filter(x, self.weight_for(x), shares)

    def shares(self, scores: Tensor) -> Tensor:
        """What the routing says (B, K C) as shares of the bank's filters, (B, K, C)."""
        return scores.unflatten(1, (self.num_filters, -1)).softmax(dim=1)


@register_notrace_module
class AFNO(nn.Module):
    """Adaptive Fourier neural operator with its shortcut (Guibas et al. 2022); it fits any grid.

    Args:
        dim: channels C.
        num_blocks: blocks of the perceptron, a divisor of C.
        threshold: soft shrinkage.

    Raises:
        ValueError: the blocks do not divide the channels.
    """

    def __init__(self, dim: int, num_blocks: int = 8, threshold: float = 0.01) -> None:
        super().__init__()
        if num_blocks < 1 or dim % num_blocks:
            raise ValueError(f"num_blocks must divide the {dim} channels, got {num_blocks}")
        size = dim // num_blocks
        self.threshold = threshold
        self.w1 = nn.Parameter(torch.empty(2, num_blocks, size, size))
        self.b1 = nn.Parameter(torch.empty(2, num_blocks, size))
        self.w2 = nn.Parameter(torch.empty(2, num_blocks, size, size))
        self.b2 = nn.Parameter(torch.empty(2, num_blocks, size))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the grid ``x`` (B, H, W, C)."""
        return x + afno(x, self.w1, self.b1, self.w2, self.b2, threshold=self.threshold)


class DepthwiseConv(nn.Module):
    """A 7x7 convolution of each channel by itself.

    Args:
        dim: channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the grid ``x`` (B, H, W, C)."""
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Widened(nn.Module):
    """A token mixer between two pointwise layers, on twice the channels, as in DFFormer's and CDFFormer's blocks.

    Args:
        dim: channels C of the grid.
        mixer: makes the mixer from its number of channels.
        act: activation before the mixer.
        expansion: channels of the mixer over C.
    """

    def __init__(
        self, dim: int, mixer: Callable[[int], nn.Module], act: Callable[[], nn.Module], expansion: int = 2
    ) -> None:
        super().__init__()
        self.widen = nn.Linear(dim, expansion * dim, bias=False)
        self.act = act()
        self.mixer = mixer(expansion * dim)
        self.narrow = nn.Linear(expansion * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the grid ``x`` (B, H, W, C)."""
        wide = self.act(self.widen(x))
        mixed = self.mixer(wide, x) if isinstance(self.mixer, DynamicFilter) else self.mixer(wide)
        return self.narrow(mixed)


@register_notrace_module
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
        if is_symbolic(tokens) or (x.device.type == "cpu" and tokens <= _PLAIN_ATTENTION_MAX_TOKENS):
            scores = (q * (channels // self.num_heads) ** -0.5) @ k.transpose(-2, -1)
            y = scores.softmax(dim=-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, height, width, channels))
