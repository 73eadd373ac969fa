"""What every operation asks of its grid."""

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def require_grid(x: Tensor) -> None:
    """Raise unless ``x`` is a real grid of tokens (B, H, W, C) with at least one token.

    Raises:
        TypeError: not real floating point.
        ValueError: another rank, or no tokens.
    """
    if x.dtype not in FLOATS:
        raise TypeError(f"x must be a real floating-point grid, not {x.dtype}; pass the tokens, not their spectrum")
    if x.ndim != 4:
        raise ValueError(f"x must be (B, H, W, C), got shape {tuple(x.shape)}")
    if x.shape[1] < 1 or x.shape[2] < 1:
        raise ValueError(f"x needs at least one token, got shape {tuple(x.shape)}")


def require_same_device(x: Tensor, **others: Tensor) -> None:
    """Raise ValueError unless the named tensors are where ``x`` is."""
    for name, other in others.items():
        if other.device != x.device:
            raise ValueError(f"x is on {x.device} but {name} on {other.device}; move one of them")
