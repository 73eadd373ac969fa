"""FreqFit and SSF: a filter, or a scale and a shift, before every block and after the last.

FreqFit filters the tokens in the frequency domain, scales and shifts the result by channel, and adds it to them (Ly and
Nguyen, "Enhancing Parameter-Efficient Fine-Tuning of Vision Transformers through Frequency-Based Adaptation", 2024);
SSF scales and shifts the tokens themselves (Lian et al., "Scaling & Shifting Your Features", NeurIPS 2022).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import FreqFormerError
from ...layers import Fitted
from ...ops import global_filter, is_symbolic, stretch_filter
from ..backbone import Grid, Tokens
from ..folding import fold_into_stem
from ..handle import Handle, NoOptions, method

# Upstream's names end so; what comes before them is its model's.
_UPSTREAM = re.compile(r"(?:^|\.)(complex_weight|filter_weight|ssf_scale|ssf_shift)$")


class ScaleShift(nn.Module):
    """A factor and an offset of each channel, near one and zero at first.

    Args:
        dim: channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(dim))
        self.shift = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.scale, mean=1.0, std=0.02)
        nn.init.normal_(self.shift, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to its own shape."""
        return x * self.scale.to(x.dtype) + self.shift.to(x.dtype)


class ResidualFilter(ScaleShift):
    """A global filter of a grid (B, H, W, C), scaled and shifted, added to the grid.

    Args:
        dim: channels C.
        grid: native (H, W) in tokens; on others the filter is stretched.
        real: real weights (H, F, C) as ``filter_weight``, not complex ones (H, F, C, 2) as ``complex_weight``.
        line: keep the weight of a line of tokens, (1, F, C, 2), as (F, C, 2).
    """

    def __init__(self, dim: int, grid: Grid, *, real: bool = False, line: bool = False) -> None:
        super().__init__(dim)
        self.grid, self.line = grid, line
        shape = (grid[1] // 2 + 1, dim) if line else (grid[0], grid[1] // 2 + 1, dim)
        self.kind = "filter_weight" if real else "complex_weight"
        setattr(self, self.kind, nn.Parameter(0.02 * torch.randn(shape if real else (*shape, 2))))
        self.fitted = Fitted(grid, fit)

    def weight(self) -> Tensor:
        """The filter on its native grid, (H, F, C) or (H, F, C, 2)."""
        weight = getattr(self, self.kind)
        return weight.unsqueeze(0) if self.line else weight

    def forward(self, x: Tensor) -> Tensor:
        """Transform the grid ``x`` (B, H, W, C)."""
        weight = self.fitted(self.weight(), (x.shape[1], x.shape[2]))
        return super().forward(global_filter(x, weight)) + x


class FoldedFilter(nn.Module):
    """What a residual filter comes to: one filter and an offset of each channel.

    ``x + scale (K * x) + shift`` is in the spectrum ``(1 + scale K) x``, and the shift.

    Args:
        residual: the filter to fold.
    """

    weight: Tensor
    shift: Tensor

    def __init__(self, residual: ResidualFilter) -> None:
        super().__init__()
        learned = residual.weight().detach()
        complex_ = residual.kind == "complex_weight"
        scale = residual.scale.detach()[:, None] if complex_ else residual.scale.detach()
        one = learned.new_tensor([1.0, 0.0]) if complex_ else 1.0
        self.register_buffer("weight", one + scale * learned)
        self.register_buffer("shift", residual.shift.detach().clone())
        self.fitted = Fitted(residual.grid, fit)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the grid ``x`` (B, H, W, C)."""
        y = global_filter(x, self.fitted(self.weight, (x.shape[1], x.shape[2])))
        return y + self.shift.to(y.dtype)


def fit(weight: Tensor, grid: Grid) -> Tensor:
    """A filter (H, F, C) or (H, F, C, 2) on another grid, stretched as the papers' codes do it."""
    if not is_symbolic(*grid) and (weight.shape[0], weight.shape[1]) == (grid[0], grid[1] // 2 + 1):
        # An even width and the odd one above it have as many columns.
        return weight
    if weight.ndim == 3:
        return stretch_filter(weight.unsqueeze(-1), grid).squeeze(-1)
    return stretch_filter(weight, grid)


class _BetweenBlocks(Handle):
    """A module before every block and one after the last; they are called ``0`` to ``depth``."""

    foldable = True
    between_blocks = True

    def make(self) -> nn.Module:
        """The module of one place."""
        raise NotImplementedError

    def build(self) -> None:
        """Make the modules."""
        self.keep(nn.ModuleList(self.make() for _ in range(self.backbone.depth + 1)))

    def places(self) -> nn.ModuleList:
        """The module of each place."""
        assert isinstance(self.module, nn.ModuleList)
        return self.module

    def named(self) -> dict[str, nn.Parameter]:
        """The modules' parameters."""
        return dict(self.places().named_parameters())

    def unbuild(self) -> None:
        """There is nothing to undo: the modules go with the handle."""

    def translate(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Upstream's stacked tensors taken apart, filters of another grid stretched to this one."""
        stacked = {found[1]: value for key, value in state.items() if (found := _UPSTREAM.search(key))}
        first = next(iter(stacked.values()), None)
        if first is not None and not any(re.match(r"\d+\.", key) for key in state):
            if any(len(value) != len(self.places()) for value in stacked.values()):
                raise FreqFormerError(
                    f"the state does not fit {self.name} on {self.backbone.name}: it is of {len(first)} places between "
                    f"blocks, and there are {len(self.places())}"
                )
            state = {
                f"{place}.{name.removeprefix('ssf_')}": value[place]
                for name, value in stacked.items()
                for place in range(len(value))
            }
        own = self.named()
        return {key: _resampled(key, own[key], value) if key in own else value for key, value in state.items()}


def _resampled(name: str, own: Tensor, value: Tensor) -> Tensor:
    """A filter on the grid of this handle's own, where that is all in which their shapes differ."""
    kind = name.rpartition(".")[2]
    if own.shape == value.shape or own.ndim != value.ndim or not kind.endswith("weight"):
        return value
    line = kind == "complex_weight" and own.ndim == 3
    axes = 1 if line else 2
    if own.shape[axes:] != value.shape[axes:]:
        return value
    grid = (1 if line else own.shape[0], 2 * (own.shape[axes - 1] - 1))
    return fit(value.unsqueeze(0), grid).squeeze(0) if line else fit(value, grid)


class _Filter(_BetweenBlocks):
    def into_weights(self) -> None:
        """One filter without a residual, and a bias."""
        places = self.places()
        for place, residual in enumerate(places):
            assert isinstance(residual, ResidualFilter)
            places[place] = FoldedFilter(residual).eval()


@method("filter2d", "freqfit")
class Filter2d(_Filter):
    """FreqFit: a complex filter of the grid of patch tokens; other tokens pass by."""

    def make(self) -> nn.Module:
        """A complex filter."""
        return ResidualFilter(self.backbone.dim, self.backbone.grid)

    def at(self, place: int, x: Tensor, tokens: Tokens) -> Tensor:
        """Filter the patch tokens."""
        return tokens.on_patches(x, partial(_on_grid, self.places()[place], tokens.grid))


@method("filter2d_real", "freqfit*", "filter2dparams")
class Filter2dReal(Filter2d):
    """FreqFit*: a real filter of the grid of patch tokens, half the parameters."""

    def make(self) -> nn.Module:
        """A real filter."""
        return ResidualFilter(self.backbone.dim, self.backbone.grid, real=True)


@dataclass
class LineOptions:
    """Options of the 1-D filter."""

    tokens: str = "patch"
    """Which tokens filter1d takes: patch, or patch+prompt (upstream's choice with prompt tuning)."""


@method("filter1d")
class Filter1d(_Filter):
    """FreqFit's first form: a complex filter of the sequence of tokens."""

    Options = LineOptions

    def build(self) -> None:
        """Make the modules, for as many tokens as there are now."""
        if self.options.tokens not in ("patch", "patch+prompt"):
            raise FreqFormerError(f"tokens must be patch or patch+prompt, not {self.options.tokens!r}")
        super().build()

    def make(self) -> nn.Module:
        """A complex filter of a line."""
        height, width = self.backbone.grid
        return ResidualFilter(self.backbone.dim, (1, height * width + self._prompts), line=True)

    @property
    def _prompts(self) -> int:
        return self.adapters.prompts if self.options.tokens == "patch+prompt" else 0

    def describe(self) -> dict[str, Any]:
        """The method, and how many prompt tokens it filters."""
        return {**super().describe(), "prompts": self._prompts}

    def at(self, place: int, x: Tensor, tokens: Tokens) -> Tensor:
        """Filter the line of tokens."""
        prompts = self.options.tokens == "patch+prompt"
        return tokens.on_patches(x, partial(_on_line, self.places()[place]), prompts=prompts)


@method("ssf")
class Ssf(_BetweenBlocks):
    """SSF between the blocks, as FreqFiT has it: a scale and a shift of each channel of all tokens."""

    Options = NoOptions
    rewrites = True

    def make(self) -> nn.Module:
        """A scale and a shift."""
        return ScaleShift(self.backbone.dim)

    def at(self, place: int, x: Tensor, tokens: Tokens) -> Tensor:
        """Scale and shift every token."""
        return self.places()[place](x)

    def into_weights(self) -> None:
        """The first into the patch and position embeddings, where that is exact; norms keep the others from it."""
        first = self.places()[0]
        assert isinstance(first, ScaleShift)
        alone = self.adapters.steps[0] == [self]
        scale, shift = first.scale.detach(), first.shift.detach()
        self._settle(alone and fold_into_stem(self.model, self.adapters, scale, shift))

    def describe(self) -> dict[str, Any]:
        """The method, and once folded, whether the embeddings took the first place."""
        in_stem = {"in_stem": isinstance(self.places()[0], nn.Identity)} if self.folded else {}
        return {**super().describe(), **in_stem}

    def fold_as(self, described: Mapping[str, Any]) -> None:
        """Have the places that a folded like has; embeddings that took one are the model's own."""
        self._settle(described["in_stem"])
        self.folded = True

    def _settle(self, in_stem: bool) -> None:
        if in_stem:
            self.places()[0] = nn.Identity()
        for parameter in self.places().parameters():
            parameter.requires_grad_(False)


def _on_grid(module: nn.Module, grid: Grid | None, patches: Tensor) -> Tensor:
    """A module on grids, on patches (B, H W, C) or (B, H, W, C)."""
    if patches.ndim == 4:
        return module(patches)
    assert grid is not None
    return module(patches.unflatten(1, grid)).flatten(1, 2)


def _on_line(module: nn.Module, patches: Tensor) -> Tensor:
    """A module on grids, on patches as one line."""
    if patches.ndim == 4:
        return module(patches.flatten(1, 2).unsqueeze(1)).squeeze(1).unflatten(1, patches.shape[1:3])
    return module(patches.unsqueeze(1)).squeeze(1)
