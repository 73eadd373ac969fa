"""A scale and a shift of the first tokens put into what makes them."""

import torch
from torch import Tensor, nn

from .backbone import blank_image, in_evaluation, owner, patch_embedding
from .handle import Adapters

_TOKENS = ("cls_token", "dist_token", "reg_token")


def fold_into_stem(model: nn.Module, adapters: Adapters, scale: Tensor, shift: Tensor) -> bool:
    """Let a model's embeddings make tokens that are scaled and shifted by channel, if they can exactly.

    Either a norm before the blocks takes both, or the patch projection, the position embedding and the class and
    register tokens do. They must serve nothing but the first tokens, and what comes out is compared with what should;
    otherwise nothing is changed. Nor is it in half precision, whose rounding of the weights is not what is wanted.

    Args:
        model: the model.
        adapters: its adapters, of which no other acts before the first block.
        scale, shift: of each channel, (C,).

    Returns:
        Whether it was done.
    """
    image = blank_image(model)
    if image.is_meta or image.dtype in (torch.float16, torch.bfloat16):
        return False
    image = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)).to(image) - 0.5
    inner = owner(model)
    targets = _norm_before(inner) or _embeddings(inner)
    if targets is None or _serves_others(model, adapters, image, [parameter for parameter, _, _ in targets]):
        return False
    wanted = _first_tokens(model, adapters, image) * scale + shift
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


def _norm_before(inner: nn.Module) -> list[Target] | None:
    norm = getattr(inner, "norm_pre", None)
    if not isinstance(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
        return None
    return [(norm.weight, True, False), (norm.bias, True, True)]


def _embeddings(inner: nn.Module) -> list[Target] | None:
    projection = getattr(patch_embedding(inner), "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.bias is None:
        return None
    targets: list[Target] = [(projection.weight, True, False), (projection.bias, True, True)]
    if isinstance(position := getattr(inner, "pos_embed", None), nn.Parameter):
        targets.append((position, True, False))
    for name in _TOKENS:
        if isinstance(token := getattr(inner, name, None), nn.Parameter):
            targets.append((token, True, True))
    return targets


def _serves_others(model: nn.Module, adapters: Adapters, image: Tensor, parameters: list[Tensor]) -> bool:
    """Whether outputs depend on parameters otherwise than through the first tokens; CaiT's on its class token do."""
    # The last of all hooks: whatever comes to the first block is as if it came from nowhere.
    cut = adapters.backbone.blocks[0].register_forward_pre_hook(lambda _, args: (args[0].detach(), *args[1:]))
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        with in_evaluation(model), torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            output = model(image).sum()
            if not output.requires_grad:
                return False
            found = torch.autograd.grad(output, parameters, allow_unused=True)
    finally:
        cut.remove()
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
    return any(gradient is not None for gradient in found)


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
