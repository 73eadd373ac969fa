"""The definition of the operations as slow float64 sums, to test every lowering against.

Letters: B batch, H and W grid, C channels, F = W//2+1 columns of the half-spectrum, P = 2 (real, imaginary).
"""

import math

import torch
from torch import Tensor


def global_filter(x: Tensor, weight: Tensor) -> Tensor:
    """Filter ``x`` (B, H, W, C) by ``weight`` with written-out Fourier sums in float64; returns x's dtype."""
    _, height, width, _ = x.shape
    columns = width // 2 + 1
    signal = x.double()
    filter_ = weight.double()
    if weight.ndim == 3:
        real, imag = filter_, torch.zeros_like(filter_)
    else:
        real, imag = filter_.unbind(-1)

    cos_h, sin_h = _waves(height, height, x.device)
    cos_w, sin_w = _waves(columns, width, x.device)
    scale = 1 / math.sqrt(height * width)

    # Forward: exp(-i a) exp(-i b) = cos(a+b) - i sin(a+b), a along H and b along W.
    spectrum_real = scale * (
        torch.einsum("kh,fw,bhwc->bkfc", cos_h, cos_w, signal) - torch.einsum("kh,fw,bhwc->bkfc", sin_h, sin_w, signal)
    )
    spectrum_imag = -scale * (
        torch.einsum("kh,fw,bhwc->bkfc", sin_h, cos_w, signal) + torch.einsum("kh,fw,bhwc->bkfc", cos_h, sin_w, signal)
    )
    product_real = spectrum_real * real - spectrum_imag * imag
    product_imag = spectrum_real * imag + spectrum_imag * real

    # A complex inverse along H ...
    rows_real = torch.einsum("kh,bkfc->bhfc", cos_h, product_real) - torch.einsum("kh,bkfc->bhfc", sin_h, product_imag)
    rows_imag = torch.einsum("kh,bkfc->bhfc", sin_h, product_real) + torch.einsum("kh,bkfc->bhfc", cos_h, product_imag)
    # ... then a real inverse along W: self-conjugate columns count once, by their real part alone; the
    # other columns stand for two, and their mirror image cancels the imaginary part of the sum.
    once = torch.ones(columns, dtype=torch.float64, device=x.device)
    twice = 2 * once
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    imag_counts = torch.where(twice == 2, twice, 0 * once)
    y = torch.einsum("f,fw,bhfc->bhwc", twice, cos_w, rows_real) - torch.einsum(
        "f,fw,bhfc->bhwc", imag_counts, sin_w, rows_imag
    )
    return (scale * y).to(x.dtype)


def _waves(frequencies: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi k n / length, each (frequencies, length)."""
    k = torch.arange(frequencies, device=device)
    n = torch.arange(length, device=device)
    angle = 2 * math.pi / length * (torch.outer(k, n) % length).double()
    return angle.cos(), angle.sin()
