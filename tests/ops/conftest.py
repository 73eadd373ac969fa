"""What the tests of the operations share: inputs, plain PyTorch, and the measure of an error."""

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("ops", deadline=None, max_examples=40)
settings.load_profile("ops")

KINDS = ("complex", "real", "per-sample")


def _normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _filter_shape(kind, batch, height, width, channels):
    half = (height, width // 2 + 1, channels)
    return {"complex": (*half, 2), "real": half, "per-sample": (batch, *half, 2)}[kind]


def _plain(x, weight):
    """NumPy's convention in plain PyTorch: a complex inverse along H, then a real one along W."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    complex_weight = weight.to(dtype) if weight.ndim == 3 else torch.view_as_complex(weight.to(dtype).contiguous())
    spectrum = torch.fft.rfft2(x.to(dtype), dim=(1, 2), norm="ortho") * complex_weight
    rows = torch.fft.ifft(spectrum, dim=1, norm="ortho")
    # The imaginary part of the self-conjugate columns is removed here, whatever the library would do with it.
    width = x.shape[2]
    keep = torch.ones(spectrum.shape[2], dtype=dtype)
    keep[0] = 0
    if width % 2 == 0:
        keep[-1] = 0
    rows = torch.complex(rows.real, rows.imag * keep[:, None])
    return torch.fft.irfft(rows, n=width, dim=2, norm="ortho").to(x.dtype)


def _error(value, truth):
    truth = truth.double()
    return float((value.double() - truth).norm() / truth.norm().clamp_min(1e-300))


def _assert_as_good_as(fast, plain, truth, factor=3.0):
    """The relative error of ``fast`` is at most ``factor`` times that of ``plain``, or that of one rounding."""
    assert fast.dtype == plain.dtype
    assert fast.shape == plain.shape == truth.shape
    # Of a few numbers plain PyTorch is now and then exact by luck.
    bound = factor * max(_error(plain, truth), torch.finfo(fast.dtype).eps / 2)
    error = _error(fast, truth)
    assert np.isfinite(error)
    assert error <= bound, f"relative error {error:.2e}, allowed {bound:.2e}"


@pytest.fixture(scope="session")
def normal():
    """Standard normal tensors that depend on nothing but shape and seed."""
    return _normal


@pytest.fixture(scope="session")
def filter_shape():
    """The shape of a weight: ``filter_shape(kind, batch, height, width, channels)``."""
    return _filter_shape


@pytest.fixture(scope="session")
def plain_filter():
    """The global filter as plain PyTorch computes it in the precision of its input."""
    return _plain


@pytest.fixture(scope="session")
def assert_as_good_as():
    return _assert_as_good_as
