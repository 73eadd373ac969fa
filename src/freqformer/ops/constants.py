"""Constants of the transforms, and where they are made."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Tensors made inside have values and serve anywhere, also when made while exporting or in inference mode."""
    with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
        yield


def waves(frequencies: int, length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi k n / length in float64, (frequencies, length), the sine exact at multiples of pi."""
    phase = torch.outer(torch.arange(frequencies, device="cpu"), torch.arange(length, device="cpu")) % length
    angle = 2 * math.pi / length * phase.double()
    return angle.cos(), angle.sin().masked_fill_(2 * phase % length == 0, 0.0)


def column_counts(width: int) -> Tensor:
    """How many columns of the whole spectrum each of the half stands for, (F,) in float64: 1 if self-conjugate."""
    counts = torch.full((width // 2 + 1,), 2.0, dtype=torch.float64, device="cpu")
    counts[0] = 1
    if width % 2 == 0:
        counts[-1] = 1
    return counts
