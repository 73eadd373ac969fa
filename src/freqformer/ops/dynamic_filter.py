"""The dynamic filter: each sample and channel has its own mixture of a few learned filters.

It equals ``global_filter`` with the per-sample weight ``weight[b, h, f, c] = sum over k of
routing[b, k, c] * bank[h, f, k]``, and so inherits its exact meaning.
"""

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
        lowering: ``"reference"``, ``"fft"`` or ``"dft"``; chosen by measured rules when None.

    Returns:
        Tensor of the shape and dtype of ``x``.

    Raises:
        TypeError: an argument is not real floating point.
        ValueError: wrong rank, a bank of another grid, a routing that fits neither, different devices, or an
            unknown lowering.
    """
    require_grid(x)
    _check(x, bank, routing)
    x = autocast_input(x)
    name = choose_lowering(x, lowering)
    if name == "fft":
        return _fft(x, bank, routing)
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


@torch.library.custom_op("freqformer::dynamic_filter_fft", mutates_args=())
def _fft(x: Tensor, bank: Tensor, routing: Tensor) -> Tensor:
    dtype = compute_dtype(x)
    with without_autocast(x):
        return fft.global_filter(x, _mixture(bank.to(dtype), routing.to(dtype)))


@_fft.register_fake
def _(x: Tensor, bank: Tensor, routing: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("freqformer::dynamic_filter_fft_weight_gradients", mutates_args=())
def _fft_weight_gradients(x: Tensor, dy: Tensor, bank: Tensor, routing: Tensor) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return torch.zeros_like(bank), torch.zeros_like(routing)
    gradient = torch.view_as_real(fft.sample_gradient(x, dy))
    with without_autocast(x):
        dbank = torch.einsum("bhfcp,bkc->hfkp", gradient, routing.to(gradient.dtype))
        drouting = torch.einsum("bhfcp,hfkp->bkc", gradient, bank.to(gradient.dtype))
    return dbank.to(bank.dtype).contiguous(), drouting.to(routing.dtype).contiguous()


@_fft_weight_gradients.register_fake
def _(x: Tensor, dy: Tensor, bank: Tensor, routing: Tensor) -> tuple[Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return torch.empty_like(bank, memory_format=contiguous), torch.empty_like(routing, memory_format=contiguous)


def _save(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    # The mixture is made again in the backward pass, never kept.
    ctx.save_for_backward(*inputs)


def _backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, bank, routing = ctx.saved_tensors  # type: ignore[attr-defined]
    need_x, *need_weights = ctx.needs_input_grad  # type: ignore[attr-defined]
    dx = _fft(dy, bank * bank.new_tensor([1, -1]), routing) if need_x else None
    dbank, drouting = _fft_weight_gradients(x, dy, bank, routing) if any(need_weights) else (None, None)
    return dx, dbank, drouting


_fft.register_autograd(_backward, setup_context=_save)
