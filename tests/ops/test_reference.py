"""The written-out definition against two things that nobody here wrote: NumPy, and a sum over shifts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freqformer.ops import global_filter

sides = st.integers(1, 8)


@given(st.integers(0, 3), sides, sides, st.integers(1, 3), st.sampled_from(["complex", "real", "per-sample"]))
def test_it_is_numpys_two_dimensional_transform(normal, filter_shape, batch, height, width, channels, kind):
    x = normal(batch, height, width, channels, seed=1)
    weight = normal(*filter_shape(kind, batch, height, width, channels), seed=2)
    y = global_filter(x, weight, lowering="reference")

    values = weight.numpy()
    if kind != "real":
        values = values[..., 0] + 1j * values[..., 1]
    if batch:
        spectrum = np.fft.rfft2(x.numpy(), axes=(1, 2)) * values
        expected = np.fft.irfft2(spectrum, s=(height, width), axes=(1, 2))
        np.testing.assert_allclose(y.numpy(), expected, atol=1e-12)
    assert y.shape == x.shape


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (4, 4), (3, 5), (4, 7), (7, 2)])
def test_it_is_a_circular_convolution(normal, size):
    height, width = size
    response = normal(height, width, 2, seed=3)
    x = normal(2, height, width, 2, seed=4)
    weight = torch.view_as_real(torch.fft.rfft2(response, dim=(0, 1)))
    expected = torch.zeros_like(x)
    for row in range(height):
        for column in range(width):
            expected += response[row, column] * x.roll((row, column), dims=(1, 2))
    torch.testing.assert_close(global_filter(x, weight, lowering="reference"), expected)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 6), (6, 5)])
def test_what_breaks_the_symmetry_is_dropped(normal, size):
    """On the self-conjugate columns, only the Hermitian part of a weight acts."""
    height, width = size
    x = normal(2, height, width, 3)
    weight = normal(height, width // 2 + 1, 3, 2, seed=5)
    symmetric = torch.view_as_complex(weight).clone()
    mirror = -torch.arange(height) % height
    for column in {0, width // 2} if width % 2 == 0 else {0}:
        symmetric[:, column] = (symmetric[:, column] + symmetric[mirror, column].conj()) / 2
    torch.testing.assert_close(
        global_filter(x, weight, lowering="reference"),
        global_filter(x, torch.view_as_real(symmetric), lowering="reference"),
    )


def test_a_filter_of_ones_changes_nothing(normal):
    x = normal(2, 5, 6, 3)
    torch.testing.assert_close(global_filter(x, torch.ones(5, 4, 3), lowering="reference"), x)
