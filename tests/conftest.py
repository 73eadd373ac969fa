"""Where the kernels of the lowering ``triton`` run: on a GPU, or else in Triton's interpreter."""

import os

import torch

if not torch.cuda.is_available():
    # Triton reads it when it is first imported, which nothing has done yet.
    os.environ.setdefault("TRITON_INTERPRET", "1")
