"""Visual prompt tuning: learned tokens beside those of the image (Jia et al., ECCV 2022)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import FreqFormerError
from ..backbone import Tokens, owner
from ..handle import Handle, method


@dataclass
class PromptOptions:
    """Options of prompt tuning."""

    num_tokens: int = 10
    """Prompt tokens of vpt_shallow and vpt_deep."""
    prompt_dropout: float = 0.0
    """Dropout of prompt tokens; upstream's run.sh has 0.1."""


class Prompts(nn.Module):
    """Prompt tokens of one layer or of each.

    Args:
        layers: how many sets.
        tokens: how many in each.
        dim: channels C.
        patch_area: pixels of a patch, which upstream's initialisation knows.
        dropout: their dropout.
    """

    def __init__(self, layers: int, tokens: int, dim: int, patch_area: int, dropout: float) -> None:
        super().__init__()
        bound = (6 / (3 * patch_area + dim)) ** 0.5
        self.tokens = nn.Parameter(torch.empty(layers, tokens, dim).uniform_(-bound, bound))
        self.dropout = nn.Dropout(dropout)

    def forward(self, layer: int, x: Tensor) -> Tensor:
        """The tokens of a layer for each sample of ``x`` (B, N, C): (B, n, C)."""
        return self.dropout(self.tokens[layer].to(x.dtype).expand(x.shape[0], -1, -1))


class _Prompting(Handle):
    Options = PromptOptions
    needs = "blocks that take any number of tokens"
    layers: int

    def build(self) -> None:
        """Make the tokens, and tell attentions with rotary embeddings that they have no position."""
        options, backbone = self.options, self.backbone
        if options.num_tokens < 1 or not 0 <= options.prompt_dropout < 1:
            raise FreqFormerError("num_tokens must be at least 1, and prompt_dropout 0 or more and below 1")
        if self.adapters.prompts:
            raise FreqFormerError("this model has prompt tokens already: detach them first")
        if (line := self.adapters.handles.get("filter1d")) and line.options.tokens == "patch+prompt":
            raise FreqFormerError("attach the prompts before filter1d, whose filter is made for patches and prompts")
        if backbone.layout == "grid":
            raise FreqFormerError(f"{backbone.name} has no place for prompt tokens: its tokens lie on a grid")
        for name, module in self.model.named_modules():
            if getattr(module, "relative_position_bias_table", None) is not None or "RelPos" in type(module).__name__:
                raise FreqFormerError(
                    f"{backbone.name} has no place for prompt tokens: {name} has a bias per pair of tokens"
                )
        area = _patch_area(self.model)
        self.keep(Prompts(self.layers, options.num_tokens, backbone.dim, area, options.prompt_dropout))
        self._lengthen(options.num_tokens)

    def _lengthen(self, tokens: int) -> None:
        self.adapters.prompts += tokens
        inside: list[Any] = [module for block in self.backbone.blocks for module in block.modules()]
        for module in inside:
            # Rotary embeddings turn what comes after the prefix.
            if isinstance(getattr(module, "num_prefix_tokens", None), int):
                module.num_prefix_tokens += tokens

    def named(self) -> dict[str, nn.Parameter]:
        """The tokens."""
        assert self.module is not None
        return dict(self.module.named_parameters())

    def unbuild(self) -> None:
        """Let attentions know their own tokens again."""
        self._lengthen(-self.options.num_tokens)

    def without(self, x: Tensor) -> Tensor:
        """The tokens (B, N, C) but for the prompts."""
        prefix = self.backbone.prefix
        return torch.cat((x[:, :prefix], x[:, prefix + self.options.num_tokens :]), dim=1)

    def order(self, place: int) -> int:
        """Prompts come before frequency modules, and go after the last of them."""
        return 0 if place < self.backbone.depth else 2

    def at(self, place: int, x: Tensor, tokens: Tokens) -> Tensor:
        """Put the prompts after the prefix tokens, and take them away at the end."""
        assert isinstance(self.module, Prompts)
        if place == self.backbone.depth:
            return self.without(x)
        if place >= self.layers:
            return x
        return torch.cat((x[:, : tokens.prefix], self.module(place, x), x[:, tokens.prefix :]), dim=1)


@method("vpt_shallow", "vpt-shallow")
class VptShallow(_Prompting):
    """VPT, shallow: prompt tokens before the first block."""

    layers = 1

    def build(self) -> None:
        """Make the tokens, and refuse features between the blocks, through which the prompts pass."""
        super().build()
        for module in {self.model, owner(self.model)}:
            if hasattr(module, "forward_intermediates"):
                module.__dict__["forward_intermediates"] = _no_features

    def unbuild(self) -> None:
        """Let the model have features again."""
        super().unbuild()
        for module in {self.model, owner(self.model)}:
            module.__dict__.pop("forward_intermediates", None)


def _no_features(*args: Any, **options: Any) -> None:
    raise FreqFormerError("between the blocks vpt_shallow's prompts are among the patches: for features take vpt_deep")


@method("vpt_deep", "vpt", "vpt-deep", "prompt")
class VptDeep(_Prompting):
    """VPT, deep: new prompt tokens before every block."""

    @property
    def layers(self) -> int:  # type: ignore[override]
        """A set for each block."""
        return self.backbone.depth

    def build(self) -> None:
        """Make the tokens; a block hands none on, so that features between the blocks are of the patches alone."""
        super().build()
        # After the last block others act on them before they go.
        self.hooks = [block.register_forward_hook(partial(_after, self)) for block in self.backbone.blocks[:-1]]

    def unbuild(self) -> None:
        """Leave the blocks alone."""
        super().unbuild()
        for hook in self.hooks:
            hook.remove()


def _after(prompting: _Prompting, block: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return prompting.without(output)


def _patch_area(model: nn.Module) -> int:
    size = getattr(getattr(model, "patch_embed", None), "patch_size", (16, 16))
    return size[0] * size[1] if isinstance(size, tuple) else size * size
