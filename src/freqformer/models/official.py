"""Translate state dicts of the official codes to this package's parameter names."""

import re
from collections.abc import Mapping
from math import isqrt

from torch import Tensor

from ..errors import FreqFormerError
from . import gfnet

# One table of (pattern, replacement) for each official layout, told apart by a key that only it has.
_LAYOUTS = {"patch_embed.proj.weight": gfnet.OFFICIAL_KEYS}


def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """For each key of an official state dict, our name of it; empty when the layout is already ours.

    Args:
        state_dict: parameter name to tensor, wrappers and prefixes already taken off.

    Returns:
        Mapping from the official key to ours, for all keys.
    """
    for marker, table in _LAYOUTS.items():
        if marker in state_dict:
            return {key: _rename(key, table) for key in state_dict}
    return {}


def square_grid(pos_embed: Tensor, where: str) -> Tensor:
    """An official position embedding (1, N, C) as a grid (1, H, W, C); official grids are square.

    Raises:
        FreqFormerError: N is not a square number; ``where`` says in what.
    """
    _, tokens, channels = pos_embed.shape
    side = isqrt(tokens)
    if side * side != tokens:
        raise FreqFormerError(
            f"{where} does not fit: its position embedding has {tokens} tokens, which is no square grid"
        )
    return pos_embed.reshape(1, side, side, channels)


def _rename(key: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        renamed, count = re.subn(rf"^{pattern}", replacement, key)
        if count:
            return renamed
    return key
