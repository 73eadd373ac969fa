"""Adapters: a small bottleneck after the feed-forward of every block (Pfeiffer et al., EACL 2021)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import FreqFormerError
from ..handle import Handle, follow, method


@dataclass
class BottleneckOptions:
    """Options of the adapter."""

    adapter_ratio: int = 8
    """Channels of the model over those of the adapter's bottleneck."""


class Bottleneck(nn.Module):
    """Down, GELU, up, added to what comes in; nothing at first.

    Args:
        dim: channels C.
        hidden: channels of the bottleneck.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        # FreqFiT sets both to zero: then neither ever has a gradient, and only the last bias learns.
        nn.init.normal_(self.down.weight, std=0.02)
        for value in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(value)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to its own shape."""
        return x + self.up(F.gelu(self.down(x.to(self.down.weight.dtype)))).to(x.dtype)


@method("adapter", "pfeiffer")
class Adapter(Handle):
    """Pfeiffer's adapter: a bottleneck after the feed-forward of every block."""

    Options = BottleneckOptions

    def build(self) -> None:
        """Make the bottlenecks and let them act on what the feed-forwards return."""
        backbone, ratio = self.backbone, self.options.adapter_ratio
        if not 1 <= ratio <= backbone.dim:
            raise FreqFormerError(f"adapter_ratio must be between 1 and {backbone.dim} channels, not {ratio}")
        feeds = [feed for block in backbone.blocks if isinstance(feed := getattr(block, "mlp", None), nn.Module)]
        if len(feeds) < backbone.depth:
            raise FreqFormerError(
                f"{backbone.name} has blocks without a feed-forward `mlp`: an adapter has no place there"
            )
        made = self.keep(nn.ModuleList(Bottleneck(backbone.dim, backbone.dim // ratio) for _ in feeds))
        self.hooks = [follow(feed, bottleneck) for feed, bottleneck in zip(feeds, made.children(), strict=True)]

    def named(self) -> dict[str, nn.Parameter]:
        """The bottlenecks' parameters, by the number of their block."""
        assert self.module is not None
        return dict(self.module.named_parameters())

    def unbuild(self) -> None:
        """Leave the feed-forwards alone."""
        for hook in self.hooks:
            hook.remove()
