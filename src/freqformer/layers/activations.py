"""Activations of the DFFormer family."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StarReLU(nn.Module):
    """``scale * relu(x)**2 + bias`` with one learned scale and bias (Yu et al., MetaFormer Baselines for Vision)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to any shape."""
        return self.scale * F.relu(x).square() + self.bias


class SquaredReLU(nn.Module):
    """``relu(x)**2`` (So et al., Primer)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to any shape."""
        return F.relu(x).square()
