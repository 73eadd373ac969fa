"""Randomness as a pure function of integers: a hash, and generators seeded for the length of a block."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import get_worker_info

_WORD = (1 << 64) - 1


def mix(*parts: int) -> int:
    """Hash integers to 63 well-mixed bits, the same in every process and on every platform.

    Args:
        parts: integers of either sign, each taken modulo 2**64; their order and number matter.

    Returns:
        An integer in [0, 2**63).
    """
    state = len(parts)
    for part in parts:
        # One step of splitmix64 (Steele, Lea and Flood, 2014) for each integer taken in.
        state = ((state ^ (part & _WORD)) + 0x9E3779B97F4A7C15) & _WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return state >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with Python's, NumPy's and torch's CPU generator seeded, then put their states back.

    In a DataLoader's worker, where nothing draws outside of such blocks, they are not put back: that takes longer
    than the seeding, a fifth of the time of a small image.

    Args:
        seed: a number in [0, 2**63), as ``mix`` returns; NumPy sees its lower 32 bits.
    """
    if get_worker_info() is not None:
        _seed(seed)
        yield
        return
    python, numpy, torch_ = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    _seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(torch_)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # torch.manual_seed would go on to every accelerator; a sample's transform uses the CPU alone.
    torch.default_generator.manual_seed(seed)
