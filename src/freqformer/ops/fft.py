"""Lowering ``fft``: the operations through ``torch.fft``, computed in float32 (float64 for float64).

Conjugates are ``conj_physical``: inside a registered operator that a compiled graph calls, torch 2.15 loses
the lazy bit of ``conj()`` and computes with the unconjugated values.
"""

import torch
from torch import Tensor

from .precision import compute_dtype


def global_filter(x: Tensor, weight: Tensor) -> Tensor:
    """Filter ``x`` (B, H, W, C) by ``weight``; returns x's shape and dtype, contiguous."""
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    grid = x.shape[1:3]
    spectrum = _rfft2(x) * _symmetrise(_as_complex(weight.to(compute_dtype(x))), grid[1])
    y = torch.fft.irfft2(spectrum, s=grid, dim=(1, 2), norm="ortho")
    return y.to(x.dtype).contiguous()


def weight_gradient(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
    """Gradient of ``sum(dy * global_filter(x, weight))`` in the weight: conj(x-hat) dy-hat, summed over the batch.

    ``x`` and ``dy`` are (B, H, W, C); the result has the shape and dtype of ``weight``.
    """
    if x.numel() == 0:
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    product = _rfft2(x).conj_physical() * _rfft2(dy)
    if weight.ndim != 5:
        product = product.sum(0)
    width = x.shape[2]
    # A column that is not self-conjugate stands for itself and its mirror image.
    product[..., 1 : (width + 1) // 2, :] *= 2
    gradient = product.real if weight.ndim == 3 else torch.view_as_real(product)
    return gradient.to(weight.dtype).contiguous()


def _rfft2(x: Tensor) -> Tensor:
    return torch.fft.rfft2(x.to(compute_dtype(x)), dim=(1, 2), norm="ortho")


def _as_complex(weight: Tensor) -> Tensor:
    return weight if weight.ndim == 3 else torch.view_as_complex(weight.contiguous())


def _symmetrise(weight: Tensor, width: int) -> Tensor:
    """Project the self-conjugate columns of (..., H, F, C) onto Hermitian symmetry.

    The product with a real image's spectrum then is one itself, so the answer cannot depend on what an
    FFT library does with the part that the definition drops.
    """
    height = weight.shape[-3]
    mirrored_rows = -torch.arange(height, device=weight.device) % height
    weight = weight.clone()
    for column in {0, width // 2} if width % 2 == 0 else {0}:
        values = weight[..., column, :]
        weight[..., column, :] = (values + values[..., mirrored_rows, :].conj_physical()) / 2
    return weight
