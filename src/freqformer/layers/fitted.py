"""A parameter on the grid that arrives, remembered while it does not change."""

from collections.abc import Callable
from typing import Any

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn

from ..ops import is_symbolic

Grid = tuple[int, int]

_MOST_GRIDS = 8


@register_notrace_module  # its answer depends on shapes, which symbolic tracing does not know
class Fitted(nn.Module):
    """Fits a parameter to other grids than its own, and remembers the results in evaluation.

    Before it answers from memory it compares the parameter with the copy that the memory was made from, so
    no way of changing weights, devices or precision can make the answer stale. Nothing is remembered while
    gradients of the parameter are recorded, or where a graph is being captured.

    Args:
        native: the parameter's own grid (H, W).
        fit: function of (parameter, grid) that makes the fitted tensor.
    """

    def __init__(self, native: Grid, fit: Callable[[Tensor, Grid], Tensor]) -> None:
        super().__init__()
        self.native = native
        self.fit = fit
        self._source: Tensor | None = None
        self._fitted: dict[Grid, Tensor] = {}

    def forward(self, parameter: Tensor, grid: Grid) -> Tensor:
        """The parameter on ``grid``."""
        if not is_symbolic(*grid) and grid == self.native:
            return parameter
        if not _memorable(parameter):
            return self.fit(parameter, grid)
        if not _same(self._source, parameter):
            self._source, self._fitted = parameter.detach().clone(), {}
        if grid not in self._fitted:
            if len(self._fitted) == _MOST_GRIDS:
                self._fitted = {}
            # Made inside inference_mode, it must still serve where a gradient passes through it.
            with torch.inference_mode(False), torch.no_grad():
                self._fitted[grid] = self.fit(parameter.detach().clone(), grid)
        return self._fitted[grid]

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a model starts without memories.
        return {**self.__dict__, "_source": None, "_fitted": {}}


def _memorable(parameter: Tensor) -> bool:
    if torch.is_grad_enabled() and parameter.requires_grad:
        return False
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    if parameter.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    # Fake and wrapped tensors have no values to compare.
    return type(parameter) in (Tensor, torch.nn.Parameter) and not parameter.is_meta


def _same(source: Tensor | None, parameter: Tensor) -> bool:
    if source is None or source.dtype != parameter.dtype or source.device != parameter.device:
        return False
    return torch.equal(source, parameter)
