"""Lowering ``dft``: the operations as real matrix products, with no complex number in the graph.

Separable: along W the grid (B, H, W, C) becomes (B, H, P, F, C), P = 2 being the real and the imaginary part and
F = W//2+1; along H the pair (H, P) is one axis, on which a complex transform is one real matrix. All four
products act on contiguous views, so nothing is permuted. On tiny grids one Kronecker product transforms both axes
at once: more arithmetic, but a larger matrix and no spectrum in between.

bfloat16 is multiplied in bfloat16, constants and spectrum included, so that a result carries a few of its roundings;
products accumulate in float32. There the constants are cosines and sines times powers of two, exact where a cosine is
1, lest a rounded 1/sqrt(W) scale the mean of every image; the rest of the ortho scale multiplies the weight. float16
is lifted to float32: a sum over a grid may leave its range.

It is not a registered operator: exporters and compilers see the matrix products themselves.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from .constants import plain_tensors
from .precision import without_autocast
from .symbolic import is_symbolic, transform_matrices

# Largest grid, in tokens, on which one Kronecker product beats two separable ones on a CPU with AVX-512 BF16:
# 1.8 times as fast at 7x7, 1.3 at 9x9, level at 10x10. In float32 it lost everywhere above 4x4.
_KRONECKER_MAX_TOKENS = 81


def global_filter(x: Tensor, weight: Tensor) -> Tensor:
    """Filter ``x`` (B, H, W, C) by ``weight``; returns x's shape and dtype."""
    dtype = _product_dtype(x)
    # Autocast would round the transform's constants to half precision.
    with without_autocast(x):
        weight = _scaled(weight, x, dtype)
        spectrum = transform(x.to(dtype))
        if weight.ndim == 3:
            product = spectrum * weight.unsqueeze(1)
        else:
            # Interleaved parts cannot be read as vectors.
            product = _multiply(spectrum, *(part.contiguous() for part in weight.unbind(-1)))
        return inverse(product, x.shape[2]).to(x.dtype)


def dynamic_filter(x: Tensor, bank: Tensor, routing: Tensor) -> Tensor:
    """Filter ``x`` (B, H, W, C) by each sample's mixture of the ``bank`` (H, F, K, 2) by its ``routing`` (B, K, C)."""
    dtype = _product_dtype(x)
    with without_autocast(x):
        # One matrix product, in the layout of the spectrum.
        mixture = _scaled(bank, x, dtype).permute(3, 0, 1, 2).flatten(0, 2) @ routing.to(dtype)
        mixture = mixture.unflatten(1, (2, *bank.shape[:2]))
        product = _multiply(transform(x.to(dtype)), mixture[:, 0], mixture[:, 1])
        return inverse(product, x.shape[2]).to(x.dtype)


def transform(x: Tensor) -> Tensor:
    """The half-spectrum (B, H, P, F, C) of ``x`` (B, H, W, C); ortho-scaled, but for bfloat16."""
    batch, height, width, channels = x.shape
    columns = width // 2 + 1
    if _is_tiny(x.dtype, height, width):
        both, _ = _kronecker(height, width, x.dtype, x.device)
        return (both @ x.reshape(batch, height * width, channels)).reshape(batch, height, 2, columns, channels)
    along_w, along_h, _, _ = _matrices(height, width, x.dtype, x.device)
    rows = along_w @ x.reshape(batch * height, width, channels)
    spectrum = along_h @ rows.reshape(batch, height * 2, columns * channels)
    return spectrum.reshape(batch, height, 2, columns, channels)


def inverse(spectrum: Tensor, width: int) -> Tensor:
    """The signal (B, H, W, C) of a half-spectrum (B, H, P, F, C); the definition's inverse for any spectrum."""
    batch, height, _, columns, channels = spectrum.shape
    if _is_tiny(spectrum.dtype, height, width):
        _, both = _kronecker(height, width, spectrum.dtype, spectrum.device)
        y = both @ spectrum.reshape(batch, height * 2 * columns, channels)
        return y.reshape(batch, height, width, channels)
    _, _, back_h, back_w = _matrices(height, width, spectrum.dtype, spectrum.device)
    rows = back_h @ spectrum.reshape(batch, height * 2, columns * channels)
    y = back_w @ rows.reshape(batch * height, 2 * columns, channels)
    return y.reshape(batch, height, width, channels)


def _multiply(spectrum: Tensor, real: Tensor, imag: Tensor) -> Tensor:
    """The spectrum (B, H, P, F, C) times a weight's real and imaginary parts, (H, F, C) or (B, H, F, C) each."""
    x_real, x_imag = spectrum.unbind(2)
    return torch.stack([x_real * real - x_imag * imag, x_real * imag + x_imag * real], dim=2)


def _product_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype == torch.float16 else x.dtype


def _scaled(weight: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in the dtype of the products, with what their constants lack of the ortho scale."""
    # Matrices made in the graph are ortho-scaled in every dtype.
    if dtype == torch.bfloat16 and not is_symbolic(x.shape[1], x.shape[2]):
        weight = weight / (_excess(x.shape[1]) * _excess(x.shape[2])) ** 2
    return weight.to(dtype)


def _excess(length: int) -> float:
    """The nearest power of two over the ortho scale of a transform of this length."""
    return math.sqrt(length) * 2.0 ** -round(math.log2(length) / 2)


def _is_tiny(dtype: torch.dtype, height: int, width: int) -> bool:
    return dtype == torch.bfloat16 and not is_symbolic(height, width) and height * width <= _KRONECKER_MAX_TOKENS


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
        # Not every device has float64.
        along_w, along_h, back_h, back_w = transform_matrices(height, width, torch.device("cpu"))
        if dtype == torch.bfloat16:
            along_w, back_w = _excess(width) * along_w, _excess(width) * back_w
            along_h, back_h = _excess(height) * along_h, _excess(height) * back_h
        return tuple(matrix.to(device, dtype).contiguous() for matrix in (along_w, along_h, back_h, back_w))


@torch.compiler.assume_constant_result
def _kronecker(height: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Both axes at once, for bfloat16 alone: forward (H * P * F, H * W), inverse (H * W, H * P * F)."""
    return _cached_kronecker(height, width, dtype, device)


@lru_cache(maxsize=64)
def _cached_kronecker(height: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    with plain_tensors():
        # The columns of a linear map are its values on unit vectors.
        signals = torch.eye(height * width, dtype=torch.float64, device="cpu")
        spectra = torch.eye(height * 2 * (width // 2 + 1), dtype=torch.float64, device="cpu")
        forward = transform(signals.unflatten(1, (height, width, 1))).flatten(1)
        backward = inverse(spectra.unflatten(1, (height, 2, -1, 1)), width).flatten(1)
        scale = _excess(height) * _excess(width)
        return tuple((scale * matrix.T).to(device, dtype).contiguous() for matrix in (forward, backward))
