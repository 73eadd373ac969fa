"""Which implementation of an operation runs: the caller's word, an override, or a measured rule."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

LOWERINGS = ("reference", "fft", "dft", "triton")

# Largest grid, in tokens, on which the matrix products are worth it on a CPU (docs/performance.md). In bfloat16 they
# are 1.8 times as fast as torch.fft at 112x112, forward and backward, but beyond it the forward pass alone loses. In
# float32, in which they compute float16 too, 1.3 times at 32x32; at 56x56 the forward pass loses.
_DFT_MAX_TOKENS = {torch.bfloat16: 112 * 112, torch.float32: 1024, torch.float16: 1024}

_override: str | None = None


@contextmanager
def use_lowering(name: str) -> Iterator[None]:
    """Make every operation inside the ``with`` block use one lowering, unless its call names another.

    Args:
        name: ``"reference"``, ``"fft"``, ``"dft"`` or ``"triton"``.

    Raises:
        ValueError: there is no lowering of that name.
    """
    global _override
    previous, _override = _override, _checked(name)
    try:
        yield
    finally:
        _override = previous


def choose_lowering(x: Tensor, lowering: str | None) -> str:
    """The lowering for the grid ``x`` (B, H, W, C): the one named, the override, or the rule for its device."""
    if lowering is not None:
        return _checked(lowering)
    if _override is not None:
        return _override
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return "dft"
    if x.device.type != "cpu":
        # Where "triton" may stand: no lowering has been timed on a GPU yet, so it keeps the plain formulation.
        return "fft"
    return "dft" if x.shape[1] * x.shape[2] <= _DFT_MAX_TOKENS.get(x.dtype, 0) else "fft"


def _checked(name: str) -> str:
    if name not in LOWERINGS:
        raise ValueError(f"there is no lowering {name!r}: choose one of {', '.join(LOWERINGS)}")
    return name
