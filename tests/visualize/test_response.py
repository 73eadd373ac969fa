import numpy as np
import pytest
import torch
from torch import nn

import freqformer.models  # noqa: F401  (registers the models)
from freqformer.errors import FreqFormerError
from freqformer.factory import create_model
from freqformer.layers import DepthwiseConv
from freqformer.visualize import response
from freqformer.visualize.response import measure_response


def reached(field):
    """The first and last row, and column, that a gradient reaches."""
    rows, columns = np.nonzero(field.map.sum(axis=1))[0], np.nonzero(field.map.sum(axis=0))[0]
    return (rows[0], rows[-1]), (columns[0], columns[-1])


@pytest.mark.parametrize("size", [(96, 96), (64, 88)])
def test_a_convolution_reaches_its_theoretical_field_and_no_further(network_of, photo, size):
    conv = DepthwiseConv(160).requires_grad_(False)
    model = network_of(lambda x: x, conv, conv)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, *size)}
    stem, once, twice = measure_response(model, photo(*size))
    assert stem.map.shape == size
    for axis in range(2):
        first, last = reached(stem)[axis]
        for field, tokens in ((once, 3), (twice, 6)):
            # A 7x7 convolution sees three tokens more on each side, of 4 pixels each.
            assert reached(field)[axis] == (first - 4 * tokens, last + 4 * tokens)


def test_a_global_filter_reaches_everything_also_off_its_native_grid():
    torch.manual_seed(0)
    model = create_model("test_gfnet").eval()
    for module in model.modules():
        if hasattr(module, "complex_weight"):
            nn.init.normal_(module.complex_weight)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 48, 80)}
    field = measure_response(model)[-1]
    assert field.map.shape == (48, 80)
    assert (field.map > 0).all()
    assert field.sides[0.95] > 0.5


@pytest.mark.parametrize("shift", [(0, 0), (2, -1), (-3, 3)])
def test_a_shift_moves_the_field_by_as_many_tokens(network_of, shift):
    still, moved = measure_response(network_of(lambda x: x, lambda x: x.roll(shift, dims=(1, 2))))
    expected = np.roll(still.map, (-4 * shift[0], -4 * shift[1]), axis=(0, 1))
    np.testing.assert_allclose(moved.map, expected, atol=1e-12)


def test_the_squares_hold_their_shares():
    for field in measure_response(create_model("test_spectformer_h", img_size=64).eval()):
        height, width = field.map.shape
        rows = abs(np.arange(height) + 0.5 - field.centre[0]) / height
        columns = abs(np.arange(width) + 0.5 - field.centre[1]) / width
        distance = np.maximum(rows[:, None], columns[None, :])
        assert field.map.sum() == pytest.approx(1)
        for share, side in field.sides.items():
            assert field.map[distance <= side / 2].sum() >= share - 1e-9 or side == 1
            # A square smaller by a pixel does not.
            assert field.map[distance < side / 2 - 1 / height - 1e-9].sum() < share


def test_a_figure_has_a_panel_a_stage_and_the_noise_is_seeded():
    model = create_model("test_spectformer_h").eval()
    titles = [axes.get_title() for axes in response(model).axes]
    assert [title.partition(" (")[0] for title in titles[:4]] == [f"stage {number}" for number in range(1, 5)]
    one, again = measure_response(model, seed=3)[1], measure_response(model, seed=3)[1]
    np.testing.assert_array_equal(one.map, again.map)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("make", ["make_detector", "make_segmenter"])
def test_of_detectors_and_segmenters_the_gradient_is_of_the_images_own_pixels(request, tmp_path, photo, make):
    from freqformer.visualize import load_network

    model, _ = load_network(request.getfixturevalue(make)(tmp_path / "run"))
    fields = measure_response(model, [photo(48, 70), photo(64, 64)])
    assert {field.map.shape for field in fields} == {(48, 70)}
    assert all(field.map.sum() == pytest.approx(1) for field in fields)


def test_no_images():
    with pytest.raises(FreqFormerError, match="no image"):
        response(create_model("test_gfnet"), [])
