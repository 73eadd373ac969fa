"""In which precision an operation computes."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The precision in which a lowering computes for an input: half types are lifted to float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def autocast_input(x: Tensor) -> Tensor:
    """The input as autocast would hand it to a matrix product; unchanged outside autocast and in float64."""
    device = x.device.type
    if x.dtype == torch.float64 or not _has_autocast(device):
        return x
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A context in which products of tensors on x's device keep their own precision."""
    device = x.device.type
    if not _has_autocast(device) or not torch.is_autocast_enabled(device):
        # Switched off already: a context in the graph would only be in torch.export's way.
        return nullcontext()
    return torch.autocast(device, enabled=False)


# Dynamo cannot look into it before torch 2.9.
@torch.compiler.assume_constant_result
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
