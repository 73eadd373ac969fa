"""The linear maps of a model's blocks; a fused query-key-value projection becomes three for a while."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FreqFormerError
from .backbone import Backbone
from .handle import Adapters


class SplitProjection(nn.Module):
    """Query, key and value as linear maps of their own, with the weights and the output of the fused one.

    The papers' methods adapt the three apart; low-rank branches of a fused map would share their first factor.

    Args:
        fused: the projection to C -> 3 C'.
        biases: what an attention adds to query, key and value itself, where the projection has no bias.
    """

    def __init__(self, fused: nn.Linear, biases: tuple[Tensor | None, ...] | None = None) -> None:
        super().__init__()
        if biases is None:
            biases = (None,) * 3 if fused.bias is None else fused.bias.chunk(3)
        maps = [_linear(weight, bias) for weight, bias in zip(fused.weight.chunk(3), biases, strict=True)]
        self.query, self.key, self.value = maps
        self.train(fused.training)
        # Kept aside without its tensors, and not as a submodule: what else is on it comes back with it.
        fused.weight = fused.bias = None  # type: ignore[assignment]
        self.__dict__["fused"] = fused

    def join(self) -> nn.Linear:
        """The fused projection with the weights that the three have now."""
        maps = (self.query, self.key, self.value)
        fused: nn.Linear = self.__dict__["fused"]
        fused.weight = _parameter(torch.cat([part.weight for part in maps]))
        if all(part.bias is not None for part in maps):
            fused.bias = _parameter(torch.cat([part.bias for part in maps]))
        return fused.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., 3 C')."""
        return torch.cat((self.query(x), self.key(x), self.value(x)), dim=-1)


def split(adapters: Adapters, who: str) -> None:
    """Put three maps in place of every fused projection of a backbone's blocks, where nobody has done so yet.

    Args:
        adapters: the model's.
        who: the method that needs them apart.

    Raises:
        FreqFormerError: full fine-tuning trains the fused ones.
    """
    backbone = adapters.backbone
    if "full" in adapters.handles:
        raise FreqFormerError(f"{who} does not go with full fine-tuning, which trains every weight as it is")
    adapters.split_by.add(who)
    for attention in _attentions(backbone):
        fused = attention.qkv
        if not isinstance(fused, nn.Linear):
            continue
        own = [getattr(attention, f"{part}_bias", None) for part in "qkv"]
        if own[0] is None:
            attention.qkv = SplitProjection(fused)
            continue
        # EVA and BEiT multiply by the fused weight without calling the module, unless they have no such biases.
        attention.qkv = SplitProjection(fused, (own[0], None, own[2]))
        attention.q_bias = attention.v_bias = None


def join(adapters: Adapters, who: str) -> None:
    """Put the fused projections back, with whatever weights their parts have now, once nobody needs them apart."""
    adapters.split_by.discard(who)
    if adapters.split_by:
        return
    backbone = adapters.backbone
    for attention in _attentions(backbone):
        parts = attention.qkv
        if not isinstance(parts, SplitProjection):
            continue
        query, key, value = parts.query, parts.key, parts.value
        if query.bias is not None and key.bias is None:
            attention.q_bias, attention.v_bias = _parameter(query.bias), _parameter(value.bias)
        attention.qkv = parts.join()


def linear_maps(backbone: Backbone, model: nn.Module, what: str) -> dict[str, nn.Linear]:
    """The linear maps of a backbone's blocks by their names in the model: the papers' six of every ViT block.

    Args:
        backbone: whose projections have been split.
        model: the model it is of.
        what: the method that asks, for the error.

    Raises:
        FreqFormerError: a block uses the weight of one without calling it, so that nothing can be put in its place.
    """
    maps = {
        f"{backbone.path}.{index}.{name}": module
        for index, block in enumerate(backbone.blocks)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }
    if bypassed := [name for name in maps if name in backbone.bypassed]:
        raise FreqFormerError(
            f"{what} cannot adapt {bypassed[0]} of {backbone.name}: its block multiplies by the weight without calling "
            "the module; name other modules as its targets, or take another method"
        )
    return maps


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one of that dotted name."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _attentions(backbone: Backbone) -> list[Any]:
    return [module for block in backbone.blocks for module in block.modules() if _is_attention(module)]


def _is_attention(module: nn.Module) -> bool:
    fused = getattr(module, "qkv", None)
    return isinstance(fused, SplitProjection) or (isinstance(fused, nn.Linear) and fused.out_features % 3 == 0)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    rows, columns = weight.shape
    made = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    made.weight = _parameter(weight)
    if bias is not None:
        made.bias = _parameter(bias)
    return made


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)
