"""Lowering ``dft``: the operations as separable real matrix products, with no complex number in the graph.

Along W the grid (B, H, W, C) becomes (B, H, P, F, C), P = 2 being the real and the imaginary part and
F = W//2+1; along H the pair (H, P) is one axis, on which a complex transform is one real matrix. All four
products act on contiguous views, so nothing is permuted. It is not a registered operator: exporters and
compilers see the matrix products themselves.
"""

from functools import lru_cache

import torch
from torch import Tensor

from .constants import plain_tensors
from .precision import compute_dtype, without_autocast
from .symbolic import is_symbolic, transform_matrices


def global_filter(x: Tensor, weight: Tensor) -> Tensor:
    """Filter ``x`` (B, H, W, C) by ``weight``; returns x's shape and dtype."""
    dtype = compute_dtype(x)
    # Autocast would round the transform's constants to half precision.
    with without_autocast(x):
        product = _multiply(transform(x.to(dtype)), weight.to(dtype))
        return inverse(product, x.shape[2]).to(x.dtype)


def transform(x: Tensor) -> Tensor:
    """The half-spectrum (B, H, P, F, C) of ``x`` (B, H, W, C), float32 or float64, ortho-scaled."""
    batch, height, width, channels = x.shape
    columns = width // 2 + 1
    along_w, along_h, _, _ = _matrices(height, width, x.dtype, x.device)
    rows = along_w @ x.reshape(batch * height, width, channels)
    spectrum = along_h @ rows.reshape(batch, height * 2, columns * channels)
    return spectrum.reshape(batch, height, 2, columns, channels)


def inverse(spectrum: Tensor, width: int) -> Tensor:
    """The signal (B, H, W, C) of a half-spectrum (B, H, P, F, C); the definition's inverse for any spectrum."""
    batch, height, _, columns, channels = spectrum.shape
    _, _, back_h, back_w = _matrices(height, width, spectrum.dtype, spectrum.device)
    rows = back_h @ spectrum.reshape(batch, height * 2, columns * channels)
    y = back_w @ rows.reshape(batch * height, 2 * columns, channels)
    return y.reshape(batch, height, width, channels)


def _multiply(spectrum: Tensor, weight: Tensor) -> Tensor:
    """The spectrum (B, H, P, F, C) times a weight (H, F, C), (H, F, C, P) or (B, H, F, C, P)."""
    if weight.ndim == 3:
        return spectrum * weight.unsqueeze(1)
    real, imag = spectrum.unbind(2)
    weight_real, weight_imag = weight.unbind(-1)
    return torch.stack([real * weight_real - imag * weight_imag, real * weight_imag + imag * weight_real], dim=2)


def _matrices(height: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Forward along W (2F, W) and along H (2H, 2H), inverse along H (2H, 2H) and along W (W, 2F)."""
    if is_symbolic(height, width):
        return tuple(matrix.to(dtype) for matrix in transform_matrices(height, width, device))
    return _constant_matrices(height, width, dtype, device)


@torch.compiler.assume_constant_result
def _constant_matrices(height: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    return _cached_matrices(height, width, dtype, device)


@lru_cache(maxsize=64)
def _cached_matrices(height: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    with plain_tensors():
        return tuple(matrix.to(dtype).contiguous() for matrix in transform_matrices(height, width, device))
