"""Where cached constants are made."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Tensors made inside have values and serve anywhere, also when made while exporting or in inference mode."""
    with _disable_current_modes(), torch.inference_mode(False):
        yield
