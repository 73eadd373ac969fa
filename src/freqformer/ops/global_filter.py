"""The global filter: one learned filter per channel, as large as the grid, applied in the frequency domain.

``y = irfft2(rfft2(x, "ortho") * weight, "ortho")`` over the two grid axes: the circular convolution of every
channel with the impulse response of its filter.

The product is in general not the half-spectrum of a real image, since a learned weight need not be
Hermitian on the self-conjugate columns (kx = 0 and, for even W, kx = W/2), and FFT libraries disagree about
what an inverse real transform then returns. Here it is defined, as NumPy does it: a complex inverse along
H, then a real inverse along W which reads only the real part of the self-conjugate columns. It equals
symmetrising the weight on those columns first; the anti-symmetric part gets no gradient. What CUDA's own
2-D inverse does there has not been measured yet (no GPU was at hand).

Every lowering obeys this for any weight and any grid. ``fft`` and ``triton`` are registered as operators, so that
complex numbers and kernels never reach a compiler; ``dft`` is plain matrix products, which exporters can see.
"""

from collections.abc import Callable

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
        lowering: ``"reference"``, ``"fft"``, ``"dft"`` or ``"triton"``; chosen by measured rules when None.

    Returns:
        Tensor of the shape and dtype of ``x``.

    Raises:
        TypeError: ``x`` or ``weight`` is not real floating point, or a float64 ``x`` meets ``"triton"``.
        ValueError: wrong rank, a weight of another grid, different devices, an unknown lowering, or a device or grid
            that ``"triton"`` does not serve.
    """
    require_grid(x)
    _check(x, weight)
    x = autocast_input(x)
    name = choose_lowering(x, lowering)
    if name in _OPERATORS:
        return _OPERATORS[name](x, weight)
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


def _triton_filter(x: Tensor, weight: Tensor, conjugate: bool) -> Tensor:
    from . import triton

    return triton.global_filter(x, weight, conjugate)


def _triton_weight_gradient(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
    from . import triton

    return triton.weight_gradient(x, dy, weight)


def _register(
    lowering: str,
    filter_: Callable[[Tensor, Tensor, bool], Tensor],
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Callable[..., Tensor]:
    """Make operators of the filter with a weight (or its conjugate) and of the gradient in the weight."""

    @torch.library.custom_op(f"freqformer::global_filter_{lowering}", mutates_args=())
    def filtered(x: Tensor, weight: Tensor, conjugate: bool = False) -> Tensor:
        return filter_(x, weight, conjugate)

    @torch.library.custom_op(f"freqformer::global_filter_{lowering}_weight_gradient", mutates_args=())
    def weight_gradient(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        return gradient(x, dy, weight)

    @filtered.register_fake
    def _(x: Tensor, weight: Tensor, conjugate: bool = False) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @weight_gradient.register_fake
    def _(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        return torch.empty_like(weight, memory_format=torch.contiguous_format)

    def save(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        x, weight, ctx.conjugate = inputs  # type: ignore[attr-defined]
        ctx.save_for_backward(x, weight)

    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        need_x, need_weight = ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        conjugate: bool = ctx.conjugate  # type: ignore[attr-defined]
        dx = filtered(dy, weight, not conjugate) if need_x else None
        # The gradient is conj(x-hat) dy-hat, and of a conjugate weight its conjugate.
        pair = (dy, x) if conjugate else (x, dy)
        return dx, weight_gradient(*pair, weight) if need_weight else None, None

    filtered.register_autograd(backward, setup_context=save)
    return filtered


_OPERATORS = {
    "fft": _register("fft", fft.global_filter, fft.weight_gradient),
    "triton": _register("triton", _triton_filter, _triton_weight_gradient),
}
