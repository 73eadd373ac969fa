"""Frequencies of a picture or a grid: how far each is from the mean, and pictures of some of them alone.

A frequency is told as a share of the Nyquist frequency, the highest that a row or column can hold: 0 is the mean, 1 a
change from each pixel to the next along one axis, and the spectrum's corners, both axes at once, are at the square root
of 2.
"""

import math

import torch
from torch import Tensor

from ..errors import FreqFormerError

HIGHEST = math.sqrt(2)
"""The frequency of the spectrum's corners."""


def radius(height: int, width: int) -> Tensor:
    """The frequency of each bin of a half-spectrum, as a share of the Nyquist frequency.

    Args:
        height: of the grid.
        width: of the grid.

    Returns:
        (H, W//2+1), in the order of ``torch.fft.rfft2``, float64.
    """
    rows = 2 * torch.fft.fftfreq(height, dtype=torch.float64)
    columns = 2 * torch.fft.rfftfreq(width, dtype=torch.float64)
    return torch.hypot(rows[:, None], columns[None, :])


def band_pass(x: Tensor, low: float = 0.0, high: float = HIGHEST) -> Tensor:
    """What is left of images when frequencies outside a band are removed; the mean always stays.

    Since the mean stays, it does not matter whether images are normalised before or after.

    Args:
        x: real images or grids (..., H, W).
        low: the least frequency, as a share of the Nyquist frequency.
        high: the greatest, included as the least is; 0 to 1.415 is everything.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Raises:
        FreqFormerError: the band's ends are no numbers from 0 on in growing order.
    """
    if not 0 <= low <= high:
        raise FreqFormerError(f"a band goes from 0 or more up to a higher frequency, not from {low} to {high}")
    height, width = x.shape[-2:]
    frequency = radius(height, width).to(x.device)
    # Sides that are no powers of two reach the corners only up to rounding.
    kept = (frequency >= low - 1e-9) & (frequency <= high + 1e-9)
    kept[0, 0] = True
    spectrum = torch.fft.rfft2(x if x.dtype == torch.float64 else x.float())
    return torch.fft.irfft2(spectrum * kept, s=(height, width)).to(x.dtype)
