"""Translate state dicts of the official codes to this package's parameter names."""

import re
from collections.abc import Mapping
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import FreqFormerError


class Layout(NamedTuple):
    """An official code's names: what it is of, a key that only it has, and (pattern, replacement) pairs."""

    name: str
    marker: str
    table: tuple[tuple[str, str], ...]


_MLP = r"(norm1|norm2|mlp\.fc1|mlp\.fc2)\."

LAYOUTS = (
    # raoyongming/GFNet; SpectFormer's isotropic models differ from it by their attention.
    Layout(
        "an isotropic GFNet or SpectFormer",
        "patch_embed.proj.weight",
        (
            (r"patch_embed\.proj\.", "stem.proj."),
            (r"blocks\.(\d+)\.(?:filter|attn)\.", r"stages.0.blocks.\1.token_mixer."),
            (rf"blocks\.(\d+)\.{_MLP}", r"stages.0.blocks.\1.\2."),
        ),
    ),
    Layout(
        "a GFNet pyramid",
        "patch_embed.0.proj.weight",
        (
            (r"patch_embed\.0\.proj\.", "stem.proj."),
            (r"patch_embed\.(\d+)\.proj\.", r"stages.\1.downsample.proj."),
            (r"blocks\.(\d+)\.(\d+)\.filter\.", r"stages.\1.blocks.\2.token_mixer."),
            (r"blocks\.(\d+)\.(\d+)\.gamma$", r"stages.\1.blocks.\2.layer_scale.gamma"),
            (rf"blocks\.(\d+)\.(\d+)\.{_MLP}", r"stages.\1.blocks.\2.\3."),
        ),
    ),
    # badripatro/SpectFormers counts from one; "#" takes one off the number after it.
    Layout(
        "a SpectFormer pyramid",
        "patch_embed1.proj.weight",
        (
            (r"patch_embed1\.conv\.", "stem.conv."),
            (r"patch_embed1\.proj\.", "stem.shrink.proj."),
            (r"patch_embed1\.norm\.", "stem.shrink.post_norm."),
            (r"patch_embed(\d)\.proj\.", r"stages.#\1.downsample.proj."),
            (r"patch_embed(\d)\.norm\.", r"stages.#\1.downsample.post_norm."),
            (r"block(\d)\.(\d+)\.attn\.", r"stages.#\1.blocks.\2.token_mixer."),
            (r"block(\d)\.(\d+)\.mlp\.dwconv\.dwconv\.", r"stages.#\1.blocks.\2.mlp.conv."),
            (rf"block(\d)\.(\d+)\.{_MLP}", r"stages.#\1.blocks.\2.\3."),
            (r"norm4\.", "norm."),
            (r"norm(\d)\.", r"stages.#\1.norm."),
            (r"post_network\.0\.", "pool."),
            (r"aux_head\.", "token_head."),
        ),
    ),
    Layout(
        "a DFFormer, CDFFormer or GFFormer",
        "downsample_layers.0.conv.weight",
        (
            (r"downsample_layers\.0\.conv\.", "stem.proj."),
            (r"downsample_layers\.0\.post_norm\.", "stem.post_norm."),
            (r"downsample_layers\.(\d)\.conv\.", r"stages.\1.downsample.proj."),
            (r"downsample_layers\.(\d)\.pre_norm\.", r"stages.\1.downsample.pre_norm."),
            (r"stages\.(\d)\.(\d+)\.token_mixer\.pwconv1\.", r"stages.\1.blocks.\2.token_mixer.widen."),
            (r"stages\.(\d)\.(\d+)\.token_mixer\.pwconv2\.", r"stages.\1.blocks.\2.token_mixer.narrow."),
            (r"stages\.(\d)\.(\d+)\.token_mixer\.act1\.", r"stages.\1.blocks.\2.token_mixer.act."),
            (
                r"stages\.(\d)\.(\d+)\.token_mixer\.complex_weights",
                r"stages.\1.blocks.\2.token_mixer.mixer.complex_weight",
            ),
            (r"stages\.(\d)\.(\d+)\.token_mixer\.reweight\.", r"stages.\1.blocks.\2.token_mixer.mixer.routing."),
            (r"stages\.(\d)\.(\d+)\.token_mixer\.dwconv\.", r"stages.\1.blocks.\2.token_mixer.mixer.conv."),
            (r"stages\.(\d)\.(\d+)\.token_mixer\.([wb][12])$", r"stages.\1.blocks.\2.token_mixer.mixer.\3"),
            (r"stages\.(\d)\.(\d+)\.res_scale(\d)\.scale", r"stages.\1.blocks.\2.residual_scale\3.gamma"),
            (r"stages\.(\d)\.(\d+)\.(norm1|norm2|mlp)\.", r"stages.\1.blocks.\2.\3."),
            (r"norm(\d)\.", r"out_norms.\1."),
        ),
    ),
)


def layout_of(state_dict: Mapping[str, Tensor]) -> Layout | None:
    """The official layout that a state dict has, or None when it is none of them."""
    return next((layout for layout in LAYOUTS if layout.marker in state_dict), None)


def to_canonical(state_dict: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state dict in this package's names and shapes.

    Args:
        state_dict: parameter name to tensor, wrappers and prefixes already taken off.
        where: what it comes from, for errors.

    Returns:
        The translated state dict, and official key to ours where they differ; two keys may name one of ours,
        which holds both.

    Raises:
        FreqFormerError: a position embedding of no square grid.
    """
    layout = layout_of(state_dict)
    names = {key: _rename(key, layout.table) if layout else key for key in state_dict}
    state = {names[key]: value for key, value in state_dict.items()}
    for name in [name for name in state if re.search(r"\.token_mixer\.kv\.", name)]:
        query, fused = name.replace(".kv.", ".q."), name.replace(".kv.", ".qkv.")
        parts = [state[part] for part in (query, name) if part in state]
        # Anything else than two matrices or two vectors is left for the loader to refuse by name.
        if len(parts) == 2 and all(part.ndim for part in parts) and parts[0].shape[1:] == parts[1].shape[1:]:
            state[fused] = torch.cat([state.pop(query), state.pop(name)])
            names = {key: fused if ours in (query, name) else ours for key, ours in names.items()}
    if "pos_embed" in state and state["pos_embed"].ndim == 3:
        state["pos_embed"] = _square_grid(state["pos_embed"], where)
    return state, {key: ours for key, ours in names.items() if key != ours}


def _square_grid(pos_embed: Tensor, where: str) -> Tensor:
    """An official position embedding (1, N, C) as a grid (1, H, W, C); official grids are square."""
    images, tokens, channels = pos_embed.shape
    side = isqrt(tokens)
    if images != 1:
        raise FreqFormerError(f"{where} does not fit: its position embedding is of {images} images, not of one")
    if side * side != tokens:
        raise FreqFormerError(
            f"{where} does not fit: its position embedding has {tokens} tokens, which is no square grid"
        )
    return pos_embed.reshape(1, side, side, channels)


def _rename(key: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        renamed, count = re.subn(rf"^{pattern}", replacement, key)
        if count:
            return re.sub(r"#(\d+)", lambda number: str(int(number[1]) - 1), renamed)
    return key
