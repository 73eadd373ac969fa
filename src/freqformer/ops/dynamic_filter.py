"""The dynamic filter: each sample and channel has its own mixture of a few learned filters.

It equals ``global_filter`` with the per-sample weight ``weight[b, h, f, c] = sum over k of
routing[b, k, c] * bank[h, f, k]``, and so inherits its exact meaning.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from . import dft, fft, reference
from .checks import require_grid, require_same_device
from .lowering import choose_lowering
from .precision import autocast_input, compute_dtype, without_autocast


def dynamic_filter(x: Tensor, bank: Tensor, routing: Tensor, *, lowering: str | None = None) -> Tensor:
    """Filter each channel of a grid of tokens by its sample's mixture of filters (DFFormer, Tatsunami and Taki 2024).

    Under autocast it computes in, and returns, the autocast dtype; bank and routing stay as they are.

    Args:
        x: real tensor (B, H, W, C), channels last; float64, float32, bfloat16 or float16.
        bank: K complex filters on the half-spectrum as a real view (H, F, K, 2), F = W//2+1.
        routing: share of each filter for each sample and channel, (B, K, C).
        lowering: ``"reference"``, ``"fft"``, ``"dft"`` or ``"triton"``; chosen by measured rules when None.

    Returns:
        Tensor of the shape and dtype of ``x``.

    Raises:
        TypeError: an argument is not real floating point, or a float64 ``x`` meets ``"triton"``.
        ValueError: wrong rank, a bank of another grid, a routing that fits neither, different devices, an unknown
            lowering, or a device or grid that ``"triton"`` does not serve.
    """
    require_grid(x)
    _check(x, bank, routing)
    x = autocast_input(x)
    name = choose_lowering(x, lowering)
    if name in _OPERATORS:
        return _OPERATORS[name](x, bank, routing)
    if name == "reference":
        return reference.global_filter(x, _mixture(bank.double(), routing.double()))
    return dft.dynamic_filter(x, bank, routing)


def _check(x: Tensor, bank: Tensor, routing: Tensor) -> None:
    for name, value in {"bank": bank, "routing": routing}.items():
        if not value.is_floating_point():
            raise TypeError(f"{name} must be real floating point, not {value.dtype}")
    batch, height, width, channels = x.shape
    half = (height, width // 2 + 1)
    if bank.ndim != 4 or bank.shape[-1] != 2:
        raise ValueError(f"bank must be (H, F, K, 2), got shape {tuple(bank.shape)}")
    if tuple(bank.shape[:2]) != half:
        raise ValueError(
            f"bank of shape {tuple(bank.shape)} does not fit x of shape {tuple(x.shape)}, which needs "
            f"{(*half, bank.shape[2], 2)}; resample the filters to this grid first"
        )
    expected = (batch, bank.shape[2], channels)
    if tuple(routing.shape) != expected:
        raise ValueError(
            f"routing of shape {tuple(routing.shape)} does not fit x of shape {tuple(x.shape)} and bank of shape "
            f"{tuple(bank.shape)}, which need (B, K, C) = {expected}"
        )
    require_same_device(x, bank=bank, routing=routing)


def _mixture(bank: Tensor, routing: Tensor) -> Tensor:
    """The per-sample weight (B, H, F, C, 2)."""
    return torch.einsum("bkc,hfkp->bhfcp", routing, bank)


def _fft_filter(x: Tensor, bank: Tensor, routing: Tensor, conjugate: bool) -> Tensor:
    dtype = compute_dtype(x)
    with without_autocast(x):
        return fft.global_filter(x, _mixture(bank.to(dtype), routing.to(dtype)), conjugate)


def _fft_gradients(x: Tensor, dy: Tensor, bank: Tensor, routing: Tensor) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return torch.zeros_like(bank), torch.zeros_like(routing)
    gradient = torch.view_as_real(fft.sample_gradient(x, dy))
    with without_autocast(x):
        dbank = torch.einsum("bhfcp,bkc->hfkp", gradient, routing.to(gradient.dtype))
        drouting = torch.einsum("bhfcp,hfkp->bkc", gradient, bank.to(gradient.dtype))
    return dbank.to(bank.dtype).contiguous(), drouting.to(routing.dtype).contiguous()


def _triton_filter(x: Tensor, bank: Tensor, routing: Tensor, conjugate: bool) -> Tensor:
    from . import triton

    return triton.dynamic_filter(x, bank, routing, conjugate)


def _triton_gradients(x: Tensor, dy: Tensor, bank: Tensor, routing: Tensor) -> tuple[Tensor, Tensor]:
    from . import triton

    return triton.dynamic_gradients(x, dy, bank, routing)


def _register(
    lowering: str,
    filter_: Callable[[Tensor, Tensor, Tensor, bool], Tensor],
    gradients: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Callable[..., Tensor]:
    """Make operators of the filter with a mixture (or its conjugate) and of the gradients in bank and routing."""

    @torch.library.custom_op(f"freqformer::dynamic_filter_{lowering}", mutates_args=())
    def filtered(x: Tensor, bank: Tensor, routing: Tensor, conjugate: bool = False) -> Tensor:
        return filter_(x, bank, routing, conjugate)

    @torch.library.custom_op(f"freqformer::dynamic_filter_{lowering}_weight_gradients", mutates_args=())
    def weight_gradients(x: Tensor, dy: Tensor, bank: Tensor, routing: Tensor) -> tuple[Tensor, Tensor]:
        return gradients(x, dy, bank, routing)

    @filtered.register_fake
    def _(x: Tensor, bank: Tensor, routing: Tensor, conjugate: bool = False) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @weight_gradients.register_fake
    def _(x: Tensor, dy: Tensor, bank: Tensor, routing: Tensor) -> tuple[Tensor, Tensor]:
        contiguous = torch.contiguous_format
        return torch.empty_like(bank, memory_format=contiguous), torch.empty_like(routing, memory_format=contiguous)

    def save(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
        # The mixture is made again in the backward pass, never kept.
        *tensors, ctx.conjugate = inputs  # type: ignore[attr-defined]
        ctx.save_for_backward(*tensors)

    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, bank, routing = ctx.saved_tensors  # type: ignore[attr-defined]
        need_x, *need_weights = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
        conjugate: bool = ctx.conjugate  # type: ignore[attr-defined]
        dx = filtered(dy, bank, routing, not conjugate) if need_x else None
        # As in the global filter: of a conjugate the conjugate.
        pair = (dy, x) if conjugate else (x, dy)
        dbank, drouting = weight_gradients(*pair, bank, routing) if any(need_weights) else (None, None)
        return dx, dbank, drouting, None

    filtered.register_autograd(backward, setup_context=save)
    return filtered


_OPERATORS = {
    "fft": _register("fft", _fft_filter, _fft_gradients),
    "triton": _register("triton", _triton_filter, _triton_gradients),
}
