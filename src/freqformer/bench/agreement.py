"""Correctness first: what is not the same function is not timed."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Largest relative error in the 2-norm. An operation rounds a few times, a network in every layer: in half precision
# the official formulation of dfformer_s18 errs by 0.0096 (bfloat16) and 0.0012 (float16), ours end to end by half more.
OPERATION = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
NETWORK = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 4e-3}


class Disagreement(Exception):
    """A candidate computes something else than what it is compared with."""

    exit_code = 1


def require_agreement(what: str, ours: Sequence[Tensor], against: Sequence[Tensor], tolerance: float) -> None:
    """Raise unless two lists of tensors are equal up to rounding.

    Args:
        what: what computes them, for the message.
        ours: the candidate's tensors.
        against: what they should be.
        tolerance: largest relative error in the 2-norm, for each tensor.

    Raises:
        Disagreement: they differ by more, or are not finite.
    """
    for one, other in zip(ours, against, strict=True):
        error = relative_error(one, other)
        if not error <= tolerance:
            raise Disagreement(f"{what} is wrong by {error:.2g}, allowed is {tolerance:g}: nothing was timed")


def relative_error(ours: Tensor, against: Tensor) -> float:
    """The norm of the difference over the norm of ``against``."""
    one, other = ours.detach().double(), against.detach().double()
    return (torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other)).item()
