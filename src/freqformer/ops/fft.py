"""Lowering ``fft``: the operations through ``torch.fft``, computed in float32 (float64 for float64).

Conjugates are ``conj_physical``: inside a registered operator that a compiled graph calls, torch 2.15 loses
the lazy bit of ``conj()`` and computes with the unconjugated values.
"""

import torch
from torch import Tensor

from .precision import compute_dtype


def global_filter(x: Tensor, weight: Tensor, conjugate: bool = False) -> Tensor:
    """Filter ``x`` (B, H, W, C) by ``weight`` or its conjugate; returns x's shape and dtype, contiguous."""
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    width = x.shape[2]
    # With a symmetric weight the product is a real image's spectrum, and every library's inverse agrees.
    symmetric = _symmetrise(_as_complex(weight.to(compute_dtype(x))), width)
    product = _rfft2(x) * (symmetric.conj_physical() if conjugate else symmetric)
    return _irfft2(product, width).to(x.dtype).contiguous()


def weight_gradient(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
    """Gradient of ``sum(dy * global_filter(x, weight))`` in the weight: conj(x-hat) dy-hat, summed over the batch.

    ``x`` and ``dy`` are (B, H, W, C); the result has the shape and dtype of ``weight``.
    """
    if x.numel() == 0:
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    product = sample_gradient(x, dy)
    if weight.ndim != 5:
        product = product.sum(0)
    gradient = product.real if weight.ndim == 3 else torch.view_as_real(product)
    return gradient.to(weight.dtype).contiguous()


def sample_gradient(x: Tensor, dy: Tensor) -> Tensor:
    """The gradient in each sample's own filter, complex (B, H, F, C), for ``x`` and ``dy`` (B, H, W, C)."""
    return _count_mirrored(_rfft2(x).conj_physical() * _rfft2(dy), x.shape[2])


def transform(x: Tensor) -> Tensor:
    """The half-spectrum (B, H, F, C, 2), a real view, of ``x`` (B, H, W, C), float32 or float64, ortho-scaled."""
    if x.numel() == 0:
        return x.new_empty(x.shape[0], x.shape[1], x.shape[2] // 2 + 1, x.shape[3], 2)
    return torch.view_as_real(_rfft2(x)).contiguous()


def transform_adjoint(gradient: Tensor, width: int) -> Tensor:
    """The gradient in a signal (B, H, W, C) from that in its half-spectrum (B, H, F, C, 2)."""
    batch, height, _, channels, _ = gradient.shape
    if gradient.numel() == 0:
        return gradient.new_empty(batch, height, width, channels)
    # The inverse counts mirrored columns twice; this sum counts every column once.
    spectrum = _symmetrise(_as_complex(gradient), width)
    spectrum[..., 1 : (width + 1) // 2, :] /= 2
    return _irfft2(spectrum, width).contiguous()


def inverse(spectrum: Tensor, width: int) -> Tensor:
    """The signal (B, H, W, C) of any half-spectrum (B, H, F, C, 2): the inverse of the definition."""
    batch, height, _, channels, _ = spectrum.shape
    if spectrum.numel() == 0:
        return spectrum.new_empty(batch, height, width, channels)
    return _irfft2(_symmetrise(_as_complex(spectrum), width), width).contiguous()


def inverse_adjoint(dy: Tensor) -> Tensor:
    """The gradient in a half-spectrum (B, H, F, C, 2) from that in its signal (B, H, W, C)."""
    if dy.numel() == 0:
        return transform(dy)
    return torch.view_as_real(_count_mirrored(_rfft2(dy), dy.shape[2])).contiguous()


def _rfft2(x: Tensor) -> Tensor:
    # torch 2.8 refuses a tensor without strides, such as the gradient of a sum.
    return torch.fft.rfft2(x.to(compute_dtype(x)).contiguous(), dim=(1, 2), norm="ortho")


def _irfft2(spectrum: Tensor, width: int) -> Tensor:
    return torch.fft.irfft2(spectrum, s=(spectrum.shape[1], width), dim=(1, 2), norm="ortho")


def _as_complex(weight: Tensor) -> Tensor:
    # A view would ask for more than contiguity of axes of length one in torch 2.8.
    return weight if weight.ndim == 3 else torch.complex(*weight.unbind(-1))


def _count_mirrored(spectrum: Tensor, width: int) -> Tensor:
    """A column that is not self-conjugate stands for itself and its mirror image."""
    spectrum[..., 1 : (width + 1) // 2, :] *= 2
    return spectrum


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
