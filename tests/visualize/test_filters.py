"""Learned filters as they act, and pictures of filters that are known."""

import math

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from freqformer import create_model
from freqformer.adapters.methods.frequency import FoldedFilter, ResidualFilter
from freqformer.errors import FreqFormerError
from freqformer.layers import GlobalFilter
from freqformer.ops import global_filter
from freqformer.visualize import filters, learned_filters, sheet


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
        model = timm.create_model(name)
        assert learned_filters(model) == {}
        with pytest.raises(FreqFormerError, match="no spectral layers"):
            filters(model)


def titles(figure):
    """What stands over each band, number and name."""
    return [text.get_text() for text in figure.texts if text.get_weight() == "bold"][1:]


def labels(figure):
    """The channels' numbers, of the first band."""
    axes = figure.axes[0]
    words = [text.get_text().removeprefix("channel ") for text in axes.texts]
    return [int(word) for word in words if word.isdigit()]


def test_layers_are_chosen_by_number_and_name():
    model = create_model("test_freqformer")
    names = list(learned_filters(model))
    assert titles(filters(model, layers=-1)) == [f"{len(names) - 1}  {names[-1]}"]
    assert titles(filters(model, layers=[names[-1], 0, "0"])) == [
        f"{len(names) - 1}  {names[-1]}",
        f"0  {names[0]}",
        f"0  {names[0]}",
    ]
    for layers, said in ((len(names), "choose from 0"), (-len(names) - 1, "choose from 0"), ("nothing", names[0])):
        with pytest.raises(FreqFormerError, match=f"there is no spectral layer .*{said}"):
            filters(model, layers=layers)


def test_channels_are_chosen_by_energy_by_index_or_by_chance():
    layer = GlobalFilter(30, (5, 6))
    strength = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Far below one: a colour bar's number is then no channel's.
        layer.complex_weight.normal_().mul_(2.0 ** (strength[:, None] - 40))
    assert labels(filters(layer, channels=7)) == strength.argsort(descending=True)[:7].tolist()
    assert labels(filters(layer, channels=7, order="index")) == list(range(7))
    drawn_at_random = [labels(filters(layer, channels=7, order="random", seed=seed)) for seed in (1, 1, 2)]
    assert drawn_at_random[0] == drawn_at_random[1] != drawn_at_random[2]
    assert all(len(set(some)) == 7 for some in drawn_at_random)
    assert len(labels(filters(layer, channels=100))) == 30
    assert labels(filters(layer, channels=[17, 0, 5])) == [17, 0, 5]
    for wrong in ([30], [-1], []):
        with pytest.raises(FreqFormerError, match="has the channels 0 to 29"):
            filters(layer, channels=wrong)
    for wrong in ({"channels": 0}, {"order": "size"}):
        with pytest.raises(FreqFormerError):
            filters(layer, **wrong)


def test_of_very_many_layers_some_are_drawn(monkeypatch):
    monkeypatch.setattr(sheet, "MOST_LAYERS", 4)
    model = torch.nn.Sequential(*(GlobalFilter(1, (2, 2)) for _ in range(10)))
    figure = filters(model, channels=1)
    assert [int(title.split()[0]) for title in titles(figure)] == [0, 3, 6, 9]
    assert any("4 of 10" in text.get_text() for text in figure.texts)
    assert len(titles(filters(model, channels=1, layers=range(10)))) == 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_precision_is_drawn(dtype):
    layer = filter_of((5, 6)).to(dtype)
    (one,) = learned_filters(layer).values()
    assert one.weight.dtype == torch.float32
    torch.testing.assert_close(one.weight, layer.complex_weight.detach().float())
    filters(layer)


@pytest.mark.parametrize(("real", "line"), [(False, False), (True, False), (False, True)])
def test_freqfits_filter_is_the_bare_one_until_it_is_folded(real, line):
    grid = (1, 12) if line else (5, 6)
    layer = ResidualFilter(3, grid, real=real, line=line)
    x = torch.randn(2, *grid, 3)
    (bare,) = learned_filters(layer).values()
    (folded,) = learned_filters(FoldedFilter(layer)).values()
    assert (bare.kind, folded.kind) == ("residual", "folded")
    filtered = global_filter(x, bare.weight)
    torch.testing.assert_close(x + layer.scale * filtered + layer.shift, layer(x))
    torch.testing.assert_close(global_filter(x, folded.weight) + layer.shift, layer(x))
    assert isinstance(filters(layer), Figure)


def test_a_line_is_drawn_with_a_row_for_each_channel():
    response = torch.zeros(1, 20)
    response[0, 3] = 1
    figure = filters(filter_of((1, 20), response))
    expected = np.zeros((3, 20))
    expected[:, 13] = 1
    np.testing.assert_allclose(drawn(figure, "impulse"), expected, atol=1e-6)


def test_figures_of_known_filters():
    grid = (6, 8)
    (identity,) = learned_filters(filter_of(grid, pure_shift(grid))).values()
    figures = identity.figures()
    assert figures["energy"] == pytest.approx(1)
    assert figures["dc_gain"] == pytest.approx(1)
    assert figures["footprint"] == pytest.approx(1, abs=1e-4)
    (mean,) = learned_filters(filter_of(grid, torch.full(grid, 1 / 48))).values()
    figures = mean.figures()
    assert figures["energy"] == pytest.approx(1 / 48, rel=1e-4)
    assert figures["low_share"] == pytest.approx(1)
    assert figures["footprint"] == pytest.approx(48, rel=1e-4)
    (nothing,) = learned_filters(filter_of(grid, torch.zeros(grid))).values()
    assert nothing.figures() == {"energy": 0, "low_share": None, "dc_gain": 0, "footprint": None}
