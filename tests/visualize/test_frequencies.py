import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freqformer.errors import FreqFormerError
from freqformer.visualize import band_pass, radius

sides = st.integers(1, 12)
ends = st.floats(0, 1.5)


def image(height, width, seed=0):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wave(height, width, rows, columns):
    """A cosine of so many periods along each axis."""
    y = torch.arange(height, dtype=torch.float64)[:, None] / height
    x = torch.arange(width, dtype=torch.float64)[None, :] / width
    return torch.cos(2 * math.pi * (rows * y + columns * x))


def test_a_frequency_is_a_share_of_the_nyquist_frequency():
    shares = radius(8, 8)
    assert shares.shape == (8, 5)
    assert shares[0, 0] == 0
    assert shares[4, 0] == shares[0, 4] == 1
    assert shares[4, 4] == math.sqrt(2)
    assert shares[1, 0] == shares[7, 0] == 0.25


@settings(deadline=None, max_examples=40)
@given(sides, sides)
def test_the_whole_band_is_the_image(height, width):
    x = image(height, width)
    torch.testing.assert_close(band_pass(x), x)


@settings(deadline=None, max_examples=40)
@given(sides, sides, ends)
def test_low_and_high_parts_add_up(height, width, cut):
    x = image(height, width)
    low = band_pass(x, 0, cut)
    high = band_pass(x, cut + 1e-6, 2)
    mean = x.mean(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(low + high - mean, x)


@settings(deadline=None, max_examples=40)
@given(sides, sides, ends, ends)
def test_the_mean_stays_and_a_second_time_changes_nothing(height, width, one, other):
    x = image(height, width)
    y = band_pass(x, min(one, other), max(one, other))
    torch.testing.assert_close(y.mean(dim=(-2, -1)), x.mean(dim=(-2, -1)))
    torch.testing.assert_close(band_pass(y, min(one, other), max(one, other)), y)


@pytest.mark.parametrize(("rows", "columns", "frequency"), [(0, 2, 0.5), (3, 0, 0.5), (3, 4, math.hypot(0.5, 1))])
def test_a_wave_passes_where_its_frequency_is_in_the_band(rows, columns, frequency):
    x = wave(12, 8, rows, columns)
    torch.testing.assert_close(band_pass(x, frequency, frequency), x)
    torch.testing.assert_close(band_pass(x, frequency + 0.01, 2), torch.zeros_like(x))
    torch.testing.assert_close(band_pass(x, 0, frequency - 0.01), torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_dtype_stays(dtype):
    assert band_pass(image(6, 5).to(dtype), 0.2, 0.7).dtype == dtype


@pytest.mark.parametrize("band", [(-0.1, 1), (0.5, 0.4), (math.nan, 1)])
def test_a_band_that_is_none_is_refused(band):
    with pytest.raises(FreqFormerError, match="a band goes from"):
        band_pass(image(4, 4), *band)
