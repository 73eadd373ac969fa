"""A scale and a shift of the first tokens put into what makes them."""

import torch
from torch import Tensor, nn

from .backbone import blank_image, in_evaluation, patch_embedding
from .handle import Adapters

_TOKENS = ("cls_token", "dist_token", "reg_token")


def fold_into_stem(model: nn.Module, adapters: Adapters, scale: Tensor, shift: Tensor) -> bool:
    """Let a model's embeddings make tokens that are scaled and shifted by channel, if they can exactly.

    Either a norm before the blocks takes both, or the patch projection, the position embedding and the class and
    register tokens do. What comes out is compared with what should; where it differs, nothing is changed.

    Args:
        model: the model.
        adapters: its adapters.
        scale, shift: of each channel, (C,).

    Returns:
        Whether it was done.
    """
    image = blank_image(model)
    image = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)).to(image) - 0.5
    wanted = _first_tokens(model, adapters, image) * scale + shift
    targets = _norm_before(model) or _embeddings(model)
    if targets is None:
        return False
    kept = [(parameter, parameter.detach().clone()) for parameter, _, _ in targets]
    for parameter, scaled, shifted in targets:
        shape = (
            (-1,) + (1,) * (parameter.ndim - 1) if parameter.ndim == 4 and parameter.shape[0] == len(scale) else (-1,)
        )
        if scaled:
            parameter.mul_(scale.view(shape).to(parameter.dtype))
        if shifted:
            parameter.add_(shift.view(shape).to(parameter.dtype))
    got = _first_tokens(model, adapters, image)
    tolerance = 100 * torch.finfo(got.dtype).eps * float(wanted.abs().max())
    if float((got - wanted).abs().max()) <= tolerance:
        return True
    for parameter, value in kept:
        parameter.copy_(value)
    return False


Target = tuple[Tensor, bool, bool]
"""A parameter, and whether it is scaled and whether it is shifted."""


def _norm_before(model: nn.Module) -> list[Target] | None:
    norm = getattr(model, "norm_pre", None)
    if not isinstance(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
        return None
    return [(norm.weight, True, False), (norm.bias, True, True)]


def _embeddings(model: nn.Module) -> list[Target] | None:
    projection = getattr(patch_embedding(model), "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.bias is None:
        return None
    targets: list[Target] = [(projection.weight, True, False), (projection.bias, True, True)]
    if isinstance(position := getattr(model, "pos_embed", None), nn.Parameter):
        targets.append((position, True, False))
    for name in _TOKENS:
        if isinstance(token := getattr(model, name, None), nn.Parameter):
            targets.append((token, True, True))
    return targets


def _first_tokens(model: nn.Module, adapters: Adapters, image: Tensor) -> Tensor:
    """What comes out of a model's embeddings, before any adapter."""
    seen: list[Tensor] = []
    # The first of all hooks: it sees the tokens that the adapters have not yet touched.
    hook = adapters.backbone.blocks[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach().clone()), prepend=True
    )
    try:
        with in_evaluation(model):
            model(image)
    finally:
        hook.remove()
    return seen[0]
