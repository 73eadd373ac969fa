"""The global filter: one learned filter per channel, as large as the grid, applied in the frequency domain.

``y = irfft2(rfft2(x, "ortho") * weight, "ortho")`` over the two grid axes: the circular convolution of every
channel with the impulse response of its filter.

The product is in general not the half-spectrum of a real image, since a learned weight need not be
Hermitian on the self-conjugate columns (kx = 0 and, for even W, kx = W/2), and FFT libraries disagree about
what an inverse real transform then returns. Here it is defined, as NumPy does it: a complex inverse along
H, then a real inverse along W which reads only the real part of the self-conjugate columns. It equals
symmetrising the weight on those columns first; the anti-symmetric part gets no gradient. What CUDA's own
2-D inverse does there has not been measured yet (no GPU was at hand).

Every lowering obeys this for any weight and any grid. ``fft`` is registered as an operator, so that
complex numbers never reach a compiler; ``dft`` is plain matrix products, which exporters can see.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from . import dft, fft, reference
from .checks import FLOATS, require_grid, require_same_device
from .lowering import choose_lowering
from .precision import autocast_input


def global_filter(x: Tensor, weight: Tensor, *, lowering: str | None = None) -> Tensor:
    """Filter each channel of a grid of tokens in the frequency domain (GFNet, Rao et al. 2021).

    A sequence of N tokens is the grid (B, 1, N, C). Under autocast it computes in, and returns, the
    autocast dtype; the weight stays as it is.

    Args:
        x: real tensor (B, H, W, C), channels last; float64, float32, bfloat16 or float16.
        weight: on the half-spectrum, F = W//2+1: complex as a real view (H, F, C, 2), real (H, F, C), or
            one filter per sample (B, H, F, C, 2).
        lowering: ``"reference"``, ``"fft"`` or ``"dft"``; chosen by measured rules when None.

    Returns:
        Tensor of the shape and dtype of ``x``.

    Raises:
        TypeError: ``x`` or ``weight`` is not real floating point.
        ValueError: wrong rank, a weight of another grid, different devices, or an unknown lowering.
    """
    require_grid(x)
    _check(x, weight)
    x = autocast_input(x)
    name = choose_lowering(x, lowering)
    if name == "fft":
        return _fft(x, weight)
    return (dft if name == "dft" else reference).global_filter(x, weight)


def _check(x: Tensor, weight: Tensor) -> None:
    if weight.dtype not in FLOATS:
        raise TypeError(f"weight must be real floating point, not {weight.dtype}; pass torch.view_as_real(weight)")
    batch, height, width, channels = x.shape
    if weight.ndim not in (3, 4, 5):
        raise ValueError(f"weight must be (H, F, C), (H, F, C, 2) or (B, H, F, C, 2), got shape {tuple(weight.shape)}")
    half = (height, width // 2 + 1, channels)
    expected = {3: half, 4: (*half, 2), 5: (batch, *half, 2)}[weight.ndim]
    if tuple(weight.shape) != expected:
        raise ValueError(
            f"weight of shape {tuple(weight.shape)} does not fit x of shape {tuple(x.shape)}, which needs "
            f"{expected}; resample the filter to this grid first"
        )
    require_same_device(x, weight=weight)


@torch.library.custom_op("freqformer::global_filter_fft", mutates_args=())
def _fft(x: Tensor, weight: Tensor) -> Tensor:
    return fft.global_filter(x, weight)


@_fft.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("freqformer::global_filter_fft_weight_gradient", mutates_args=())
def _fft_weight_gradient(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
    return fft.weight_gradient(x, dy, weight)


@_fft_weight_gradient.register_fake
def _(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _save(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
    need_x, need_weight = ctx.needs_input_grad  # type: ignore[attr-defined]
    dx = _fft(dy, _conjugate(weight)) if need_x else None
    dweight = _fft_weight_gradient(x, dy, weight) if need_weight else None
    return dx, dweight


def _conjugate(weight: Tensor) -> Tensor:
    """The weight of the adjoint operation."""
    return weight if weight.ndim == 3 else weight * weight.new_tensor([1, -1])


_fft.register_autograd(_backward, setup_context=_save)
