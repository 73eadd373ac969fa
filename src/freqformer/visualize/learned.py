"""The filters that a model has learned, wherever in it they are."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..adapters.methods.frequency import FoldedFilter, ResidualFilter
from ..layers import DynamicFilter, GlobalFilter

Grid = tuple[int, int]

KINDS = {
    "global": "global filter",
    "dynamic": "bank of a dynamic filter",
    "residual": "FreqFit's filter K of x + scale (K * x) + shift",
    "folded": "FreqFit's filter with its scale and x folded in, 1 + scale K",
}
"""The kinds of learned filters, and what of each is drawn."""


@dataclass(frozen=True, eq=False)
class LearnedFilter:
    """The filters of one spectral layer, on their native grid.

    FreqFit's residual filter is the bare one, which the paper draws: K of ``x + scale (K * x) + shift``. A folded one
    is all that acts on x but the shift: ``1 + scale K``.
    """

    name: str
    """The module's name in the model."""
    kind: str
    """global, dynamic (a bank of filters), residual or folded (FreqFit's)."""
    grid: Grid
    """(H, W) in tokens; a 1-D filter has H = 1."""
    weight: Tensor
    """The half-spectrum as it is stored, (H, F, C, 2) with F = W//2+1, float32 on the CPU."""

    @property
    def channels(self) -> int:
        """Filters C: one a channel, or of a bank K."""
        return self.weight.shape[2]

    @cached_property
    def spectrum(self) -> Tensor:
        """The whole spectrum as it acts, complex (H, W, C), with the mean (DC) at (H//2, W//2).

        On the self-conjugate columns a stored weight need not be Hermitian, and what is not has no effect: it is
        left out.
        """
        return torch.fft.fftshift(_whole(self._acting, self.grid[1]), dim=(0, 1))

    @cached_property
    def impulse(self) -> Tensor:
        """The impulse response, real (H, W, C), with no shift at (H//2, W//2).

        The layer's operation is the circular convolution of each channel with it.
        """
        response = torch.fft.irfft2(self._acting, s=self.grid, dim=(0, 1))
        return torch.fft.fftshift(response, dim=(0, 1))

    @cached_property
    def energy(self) -> Tensor:
        """The squared gain of each filter, as a mean over all frequencies, (C,); the sum of squares of `impulse`."""
        return self.impulse.square().sum(dim=(0, 1))

    def figures(self) -> dict[str, float | None]:
        """What the filters do, as means over them; what a filter of zeros has not is None.

        Returns:
            ``energy``, see there; ``low_share``, of the energy at frequencies below half of Nyquist; ``dc_gain``, the
            magnitude at the mean; ``footprint``, over how many tokens the energy of the impulse response spreads: 1 for
            one impulse, all tokens for an even response.
        """
        height, width = self.grid
        power = self.spectrum.abs().square()
        rows, columns = (2 * torch.fft.fftshift(torch.fft.fftfreq(side)) for side in self.grid)
        low = torch.hypot(rows[:, None], columns[None, :]) < 0.5
        squares = self.impulse.square()
        spread = squares.sum(dim=(0, 1)).square() / squares.square().sum(dim=(0, 1))
        energy = float(power.mean())
        return {
            "energy": energy,
            "low_share": float(power[low].sum() / power.sum()) if energy else None,
            "dc_gain": float(self.spectrum[height // 2, width // 2].abs().mean()),
            "footprint": float(spread[squares.any(dim=0).any(dim=0)].mean()) if energy else None,
        }

    @property
    def _acting(self) -> Tensor:
        """The half-spectrum with the self-conjugate columns symmetrised, complex (H, F, C)."""
        half = torch.view_as_complex(self.weight.contiguous()).clone()
        width = self.grid[1]
        for column in {0, width // 2} if width % 2 == 0 else {0}:
            half[:, column] = (half[:, column] + _mirrored(half[:, column]).conj()) / 2
        return half


def learned_filters(model: nn.Module) -> dict[str, LearnedFilter]:
    """The learned filters of every spectral layer of a model, in its own order.

    Args:
        model: a classifier, an adapted model of timm, a detector or a segmenter; anything that holds such layers.

    Returns:
        From the layer's module name to its filters; empty where the model has none (a ViT; AFNO has no filters).
    """
    found = {}
    weight: Tensor
    for name, module in model.named_modules():
        match module:
            case GlobalFilter():
                kind, grid, weight = "global", module.grid, module.complex_weight
            case DynamicFilter():
                kind, grid, weight = "dynamic", module.grid, module.complex_weight
            case ResidualFilter():
                kind, grid, weight = "residual", module.grid, module.weight()
            case FoldedFilter():
                kind, grid, weight = "folded", module.fitted.native, module.weight
            case _:
                continue
        found[name] = LearnedFilter(name, kind, grid, _plain(weight))
    return found


def _plain(weight: Tensor) -> Tensor:
    """A weight as a float32 view of complex numbers on the CPU, whole where it is spread over processes."""
    whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    plain = whole.detach().to("cpu", torch.float32)
    return plain.clone() if plain.ndim == 4 else torch.stack([plain, torch.zeros_like(plain)], dim=-1)


def _mirrored(x: Tensor) -> Tensor:
    """Rows at the opposite frequencies: row ky at -ky."""
    return x.flip(0).roll(1, 0)


def _whole(half: Tensor, width: int) -> Tensor:
    """The spectrum (H, W, C) whose half is (H, F, C), by the symmetry that a real impulse response has."""
    others = half[:, 1 : (width + 1) // 2].flip(1)
    return torch.cat([half, _mirrored(others).conj()], dim=1)
