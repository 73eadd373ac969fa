"""Learned filters as they act, and pictures of filters that are known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from freqformer import create_model
from freqformer.errors import FreqFormerError
from freqformer.layers import GlobalFilter
from freqformer.ops import global_filter
from freqformer.visualize import filters, learned_filters


def filter_of(grid, response=None, dim=3):
    """A layer whose impulse response, with no shift at (0, 0), is given, or random and not Hermitian."""
    layer = GlobalFilter(dim, grid)
    with torch.no_grad():
        if response is None:
            layer.complex_weight.normal_()
        else:
            spectrum = torch.fft.rfft2(response)[..., None].expand(-1, -1, dim)
            layer.complex_weight.copy_(torch.view_as_real(spectrum))
    return layer


def drawn(figure, what):
    """The data of the first picture of a kind."""
    return next(axes for axes in figure.axes if axes.get_label() == what).images[0].get_array()


def tile(figure, what, grid, place=0):
    height, width = grid
    left = place * (width + math.ceil(width / 14))
    return drawn(figure, what)[:height, left : left + width]


GRIDS = [(8, 8), (7, 7), (6, 9), (9, 6)]


def pure_shift(grid, rows=2, columns=1):
    response = torch.zeros(grid)
    response[rows, columns] = 1
    return response


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_the_impulse_response_is_what_the_layer_convolves_with(height, width, seed):
    torch.manual_seed(seed)
    layer = filter_of((height, width), dim=2)
    (one,) = learned_filters(layer).values()
    x = torch.randn(1, height, width, 2, dtype=torch.float64)
    moved = torch.fft.ifftshift(one.impulse.double(), dim=(0, 1))
    # Each token hands on its value, spread by the response.
    y = sum(x[:, i, j].reshape(1, 1, 1, 2) * moved.roll((i, j), (0, 1)) for i in range(height) for j in range(width))
    torch.testing.assert_close(y, global_filter(x, layer.complex_weight.double()), atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_the_spectrum_is_what_multiplies_the_whole_spectrum_of_the_grid(height, width, seed):
    torch.manual_seed(seed)
    layer = filter_of((height, width), dim=2)
    (one,) = learned_filters(layer).values()
    x = torch.randn(1, height, width, 2, dtype=torch.float64)
    spectrum = torch.fft.ifftshift(one.spectrum, dim=(0, 1))
    y = torch.fft.ifft2(torch.fft.fft2(x, dim=(1, 2)) * spectrum, dim=(1, 2))
    assert y.imag.abs().max() < 1e-5
    torch.testing.assert_close(y.real, global_filter(x, layer.complex_weight.double()), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.energy, spectrum.abs().square().mean(dim=(0, 1)))


@pytest.mark.parametrize("grid", GRIDS)
def test_the_identity_is_one_everywhere_and_an_impulse_in_the_middle(grid):
    figure = filters(filter_of(grid, pure_shift(grid, 0, 0)))
    assert isinstance(figure, Figure)
    np.testing.assert_allclose(tile(figure, "magnitude", grid), 0, atol=1e-6)
    np.testing.assert_allclose(tile(figure, "phase", grid), 0, atol=1e-6)
    expected = np.zeros(grid)
    expected[grid[0] // 2, grid[1] // 2] = 1
    np.testing.assert_allclose(tile(figure, "impulse", grid), expected, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_shift_is_a_ramp_of_phase_and_an_impulse_away_from_the_middle(grid):
    figure = filters(filter_of(grid, pure_shift(grid)))
    np.testing.assert_allclose(tile(figure, "magnitude", grid), 0, atol=1e-6)
    rows, columns = (np.arange(side) - side // 2 for side in grid)
    ramp = -2 * np.pi * (2 * rows[:, None] / grid[0] + columns[None, :] / grid[1])
    np.testing.assert_allclose(np.exp(1j * tile(figure, "phase", grid).data), np.exp(1j * ramp), atol=1e-5)
    expected = np.zeros(grid)
    expected[grid[0] // 2 + 2, grid[1] // 2 + 1] = 1
    np.testing.assert_allclose(tile(figure, "impulse", grid), expected, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_low_pass_is_bright_in_the_middle_and_has_no_phase_outside(grid):
    layer = GlobalFilter(2, grid)
    rows, columns = torch.fft.fftfreq(grid[0]), torch.fft.rfftfreq(grid[1])
    passes = torch.hypot(rows[:, None], columns[None, :]) < 0.26
    with torch.no_grad():
        layer.complex_weight.zero_()
        layer.complex_weight[..., 0] = 2.0 * passes[..., None]
    figure = filters(layer)
    y, x = ((np.arange(side) - side // 2) / side for side in grid)
    inside = np.hypot(y[:, None], x[None, :]) < 0.26
    magnitude, phase = tile(figure, "magnitude", grid), tile(figure, "phase", grid)
    np.testing.assert_allclose(magnitude[inside], math.log10(2), atol=1e-6)
    assert (magnitude[~inside] < math.log10(2) - 3).all()
    np.testing.assert_allclose(phase[inside], 0, atol=1e-6)
    assert (phase[~inside] < -math.pi).all()
    # The sum of an impulse response is the gain of the mean.
    assert tile(figure, "impulse", grid).sum() == pytest.approx(2, abs=1e-5)


def test_nothing_is_drawn_as_nothing():
    grid = (6, 6)
    figure = filters(filter_of(grid, torch.zeros(grid)))
    assert len(np.unique(tile(figure, "magnitude", grid))) == 1
    assert (tile(figure, "phase", grid) < -math.pi).all()
    assert not tile(figure, "impulse", grid).any()
    assert "all zero" in " ".join(text.get_text() for text in figure.texts)


@pytest.mark.parametrize("grid", GRIDS)
def test_what_has_no_effect_is_not_seen(grid):
    layer = filter_of(grid)
    before = filters(layer)
    added = torch.randn(grid[0], 3, 2)
    # A column's part that is opposite to its own mirror image.
    odd = torch.view_as_complex(added)
    odd = torch.view_as_real(odd - odd.flip(0).roll(1, 0).conj())
    with torch.no_grad():
        layer.complex_weight[:, 0] += odd
        if grid[1] % 2 == 0:
            layer.complex_weight[:, -1] += odd
    after = filters(layer)
    for what in ("magnitude", "impulse"):
        np.testing.assert_allclose(drawn(after, what), drawn(before, what), atol=1e-4)


def test_every_layer_is_a_band():
    model = create_model("test_freqformer")
    learned = learned_filters(model)
    figure = filters(model)
    assert [axes.get_label() for axes in figure.axes] == ["magnitude", "phase", "impulse"] * len(learned)
    words = " ".join(text.get_text() for text in figure.texts)
    assert all(name in words for name in learned)


def test_a_model_without_filters_is_refused():
    for name in ("test_afno", "test_vit"):
        import timm

        model = timm.create_model(name)
        assert learned_filters(model) == {}
        with pytest.raises(FreqFormerError, match="no spectral layers"):
            filters(model)
