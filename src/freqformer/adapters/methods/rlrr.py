"""RLRR: every linear map rescaled by rows and columns, with a residual (Dong et al., CVPR 2024)."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..handle import Handle, follow, method
from ..projections import join, linear_maps, replace, split


class Rescaled(nn.Module):
    """A linear map with the weight ``W + scale_out W scale_in`` and the bias ``b + shift``.

    Args:
        base: the map (C -> C'), frozen.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        dtype = torch.float32 if base.weight.dtype in (torch.float16, torch.bfloat16) else base.weight.dtype
        new = partial(torch.empty, device=base.weight.device, dtype=dtype)
        # The authors' initialisation: Kaiming's of a row vector and of a column vector.
        self.scale_in = nn.Parameter(new(base.in_features).uniform_(-1, 1) * (6 / base.in_features) ** 0.5)
        self.scale_out = nn.Parameter(new(base.out_features).uniform_(-1, 1) * 6**0.5)
        self.shift = None if base.bias is None else nn.Parameter(torch.zeros_like(base.bias, dtype=dtype))

    @property
    def weight(self) -> Tensor:
        """The weight, (C', C)."""
        base = self.base.weight
        return (base + base * self.scale_in * self.scale_out[:, None]).to(base.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The bias, (C',)."""
        return None if self.shift is None else (self.base.bias + self.shift).to(self.base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C')."""
        return F.linear(x, self.weight, self.bias)


class NormScale(nn.Module):
    """A factor, and for norms that have a bias an offset, of each channel after a norm; one and zero at first.

    Args:
        norm: the norm.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        weight: Any = norm.weight
        self.scale = nn.Parameter(torch.ones_like(weight))
        self.shift = nn.Parameter(torch.zeros_like(weight)) if getattr(norm, "bias", None) is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to its own shape."""
        y = x * self.scale.to(x.dtype)
        return y if self.shift is None else y + self.shift.to(x.dtype)


@method("rlrr")
class Rlrr(Handle):
    """RLRR: scales of the rows and columns of every linear map, and of the norms before them."""

    foldable = True
    replaces = True
    rewrites = True

    def build(self) -> None:
        """Put rescaled maps in place of the blocks' own, and scales after the norms."""
        split(self.adapters, self.name)
        try:
            maps = linear_maps(self.backbone, self.model, self.name)
        except Exception:
            join(self.adapters, self.name)
            raise
        self.maps = {name: Rescaled(base) for name, base in maps.items()}
        for name, rescaled in self.maps.items():
            replace(self.model, name, rescaled.train(self.model.training))
        norms = {
            f"{self.backbone.path}.{index}.{name}": child
            for index, block in enumerate(self.backbone.blocks)
            for name, child in block.named_children()
            if "norm" in name and getattr(child, "weight", None) is not None
        }
        self.norms = norms
        scales = nn.ModuleList(NormScale(norm) for norm in norms.values())
        self.keep(scales)
        self.hooks = [follow(norm, scale) for norm, scale in zip(norms.values(), scales, strict=True)]

    def named(self) -> dict[str, nn.Parameter]:
        """Scales and shifts by the names of the maps and norms."""
        assert self.module is not None
        found = {
            f"{path}.{name}": parameter
            for path, rescaled in self.maps.items()
            for name, parameter in rescaled.named_parameters(recurse=False)
        }
        for path, scale in zip(self.norms, self.module.children(), strict=True):
            found.update({f"{path}.{name}": parameter for name, parameter in scale.named_parameters()})
        return found

    def unbuild(self) -> None:
        """Put the maps back."""
        for hook in self.hooks:
            hook.remove()
        for name, rescaled in self.maps.items():
            replace(self.model, name, rescaled.base)
        join(self.adapters, self.name)

    def into_weights(self) -> None:
        """Into the maps' weights and biases and the norms' own scales."""
        assert self.module is not None
        for rescaled in self.maps.values():
            weight, bias = rescaled.weight, rescaled.bias
            rescaled.base.weight.copy_(weight)
            if bias is not None:
                rescaled.base.bias.copy_(bias)
        for norm, scale in zip(self.norms.values(), self.module.children(), strict=True):
            assert isinstance(scale, NormScale)
            assert isinstance(norm.weight, Tensor)
            norm.weight.mul_(scale.scale.to(norm.weight.dtype))
            if scale.shift is not None:
                assert isinstance(norm.bias, Tensor)
                norm.bias.copy_(norm.bias * scale.scale + scale.shift)
        self.unbuild()
        del self.adapters._modules[self.name]

    def modules(self) -> list[nn.Module]:
        """None whose mode matters."""
        return []
