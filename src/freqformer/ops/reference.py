"""The definition of the operations as slow float64 sums, to test every lowering against.

Letters: B batch, H and W grid, C channels, F = W//2+1 columns of the half-spectrum, P = 2 (real, imaginary).
"""

import math

import torch
from torch import Tensor


def global_filter(x: Tensor, weight: Tensor) -> Tensor:
    """Filter ``x`` (B, H, W, C) by ``weight`` with written-out Fourier sums in float64; returns x's dtype."""
    filter_ = weight.double()
    real, imag = (filter_, torch.zeros_like(filter_)) if weight.ndim == 3 else filter_.unbind(-1)
    spectrum_real, spectrum_imag = _transform(x.double())
    product_real = spectrum_real * real - spectrum_imag * imag
    product_imag = spectrum_real * imag + spectrum_imag * real
    return _inverse(product_real, product_imag, x.shape[2]).to(x.dtype)


def afno(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, threshold: float) -> Tensor:
    """AFNO's perceptron on every bin of the spectrum of ``x`` (B, H, W, C), a block at a time, in float64."""
    real, imag = _transform(x.double())
    outputs = []
    blocks = w1.shape[1]
    for block, value in enumerate(torch.complex(real, imag).chunk(blocks, dim=-1)):
        first, bias, second, last = (torch.complex(*part[:, block].double()) for part in (w1, b1, w2, b2))
        hidden = value @ first + bias
        hidden = torch.complex(hidden.real.clamp_min(0), hidden.imag.clamp_min(0))
        outputs.append(hidden @ second + last)
    output = torch.cat(outputs, dim=-1)
    return _inverse(_shrink(output.real, threshold), _shrink(output.imag, threshold), x.shape[2]).to(x.dtype)


def _shrink(value: Tensor, threshold: float) -> Tensor:
    return value.sign() * (value.abs() - threshold).clamp_min(0)


def _transform(signal: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part (B, H, F, C) of the half-spectrum of a signal (B, H, W, C)."""
    _, height, width, _ = signal.shape
    cos_h, sin_h = _waves(height, height, signal.device)
    cos_w, sin_w = _waves(width // 2 + 1, width, signal.device)
    scale = 1 / math.sqrt(height * width)
    # exp(-i a) exp(-i b) = cos(a+b) - i sin(a+b), a along H and b along W.
    real = torch.einsum("kh,fw,bhwc->bkfc", cos_h, cos_w, signal) - torch.einsum(
        "kh,fw,bhwc->bkfc", sin_h, sin_w, signal
    )
    imag = torch.einsum("kh,fw,bhwc->bkfc", sin_h, cos_w, signal) + torch.einsum(
        "kh,fw,bhwc->bkfc", cos_h, sin_w, signal
    )
    return scale * real, -scale * imag


def _inverse(real: Tensor, imag: Tensor, width: int) -> Tensor:
    """The signal (B, H, W, C) of a half-spectrum (B, H, F, C) that need not be a real signal's."""
    _, height, columns, _ = real.shape
    cos_h, sin_h = _waves(height, height, real.device)
    cos_w, sin_w = _waves(columns, width, real.device)
    # A complex inverse along H ...
    rows_real = torch.einsum("kh,bkfc->bhfc", cos_h, real) - torch.einsum("kh,bkfc->bhfc", sin_h, imag)
    rows_imag = torch.einsum("kh,bkfc->bhfc", sin_h, real) + torch.einsum("kh,bkfc->bhfc", cos_h, imag)
    # ... then a real inverse along W: self-conjugate columns count once, by their real part alone; the
    # other columns stand for two, and their mirror image cancels the imaginary part of the sum.
    once = torch.ones(columns, dtype=torch.float64, device=real.device)
    twice = 2 * once
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    imag_counts = torch.where(twice == 2, twice, 0 * once)
    y = torch.einsum("f,fw,bhfc->bhwc", twice, cos_w, rows_real) - torch.einsum(
        "f,fw,bhfc->bhwc", imag_counts, sin_w, rows_imag
    )
    return y / math.sqrt(height * width)


def _waves(frequencies: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi k n / length, each (frequencies, length)."""
    k = torch.arange(frequencies, device=device)
    n = torch.arange(length, device=device)
    angle = 2 * math.pi / length * (torch.outer(k, n) % length).double()
    return angle.cos(), angle.sin()
