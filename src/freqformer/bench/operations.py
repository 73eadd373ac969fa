"""The operations as benchmarks run them: our lowerings, and the official codes' formulation written out plainly."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..ops import dynamic_filter, global_filter
from .networks import OFFICIAL

OPERATIONS = ("global_filter", "dynamic_filter")
SUBQUADRATIC = "subquadratic"
_MIXED_FILTERS = 4

Function = Callable[..., Tensor]


def make_inputs(
    operation: str, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Random x (B, H, W, C) in a dtype, and the filters and routing of an operation in float32, all with gradients.

    The filters are spectra of real impulse responses, for which all inverse transforms agree.
    """
    batch, height, width, channels = shape
    generator = torch.Generator(device).manual_seed(0)
    noise = partial(torch.randn, generator=generator, device=device)
    filters = channels if operation == "global_filter" else _MIXED_FILTERS
    spectrum = torch.fft.rfft2(noise(height, width, filters), dim=(0, 1), norm="ortho")
    inputs = [noise(*shape).to(dtype), torch.view_as_real(spectrum).contiguous()]
    if operation == "dynamic_filter":
        inputs.append(noise(batch, filters, channels).softmax(dim=1))
    return [tensor.requires_grad_() for tensor in inputs]


def candidate(operation: str, lowering: str | None) -> Function:
    """Our operation in a lowering, or in the one that the rules choose."""
    return partial(_OURS[operation], lowering=lowering)


def baseline(operation: str, against: str) -> Function:
    """What an operation is compared with: the official formulation, or one of our lowerings."""
    if against == OFFICIAL:
        return _OFFICIAL[operation]
    return candidate(operation, against)


def official_global_filter(x: Tensor, weight: Tensor) -> Tensor:
    """GFNet's filter as its code computes it, in float32, for x (B, H, W, C) and weight (H, F, C, 2)."""
    height, width = x.shape[1:3]
    spectrum = torch.fft.rfft2(x.float(), dim=(1, 2), norm="ortho")
    product = spectrum * torch.view_as_complex(weight)
    return torch.fft.irfft2(product, s=(height, width), dim=(1, 2), norm="ortho").to(x.dtype)


def official_dynamic_filter(x: Tensor, bank: Tensor, routing: Tensor) -> Tensor:
    """DFFormer's filter as its code computes it, each sample's filter written out: (B, H, W, C) by (H, F, K, 2)."""
    height, width = x.shape[1:3]
    weight = torch.einsum("bkc,hfk->bhfc", routing.to(torch.complex64), torch.view_as_complex(bank))
    spectrum = torch.fft.rfft2(x.float(), dim=(1, 2), norm="ortho")
    return torch.fft.irfft2(spectrum * weight, s=(height, width), dim=(1, 2), norm="ortho").to(x.dtype)


def make_step(function: Function, inputs: list[Tensor], *, backward: bool) -> Callable[[], list[Tensor]]:
    """What is timed: the function, without gradients, or with those of all its inputs."""
    if not backward:

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [function(*inputs)]

        return forward
    # Random, as a gradient of ones lives in one bin; equal for all functions of these inputs.
    generator = torch.Generator(inputs[0].device).manual_seed(1)
    dy = torch.randn(inputs[0].shape, generator=generator, device=inputs[0].device).to(inputs[0].dtype)

    def both() -> list[Tensor]:
        y = function(*inputs)
        return [y, *torch.autograd.grad(y, inputs, dy)]

    return both


def subquadratic() -> Function | str:
    """NVIDIA's fused 2-D FFT convolution, or why it cannot be had.

    It pads with zeros where ours is circular and wants channels first, so it is another function of as many numbers,
    whose values are not compared. Written from its documentation; no machine that had it was at hand.
    """
    name = "subquadratic_ops_torch"
    try:
        module = import_module(f"{name}.fused_fft_conv2d")
    except ImportError as error:
        return str(error)
    return partial(_subquadratic, module.fused_fft_conv2d)


def _subquadratic(convolve: Any, x: Tensor, kernel: Tensor) -> Tensor:
    side = max(x.shape[-2:])
    # Its tiles are powers of two that hold the image twice.
    return convolve(x, kernel, fft_size=max(8, 1 << (2 * side - 1).bit_length()))


def subquadratic_inputs(inputs: list[Tensor]) -> list[Tensor]:
    """x and the impulse responses of its filters with channels first, (B, C, H, W) and (1, C, H, W)."""
    x, weight = (tensor.detach() for tensor in inputs)
    kernel = torch.fft.irfft2(torch.view_as_complex(weight), s=x.shape[1:3], dim=(0, 1))
    channels_first = [x.permute(0, 3, 1, 2), kernel.permute(2, 0, 1)[None].to(x.dtype)]
    return [tensor.contiguous().requires_grad_() for tensor in channels_first]


_OURS: dict[str, Function] = {"global_filter": global_filter, "dynamic_filter": dynamic_filter}
_OFFICIAL: dict[str, Function] = {"global_filter": official_global_filter, "dynamic_filter": official_dynamic_filter}
