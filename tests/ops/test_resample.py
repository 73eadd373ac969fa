import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from freqformer.ops import crop_pad_filter, fit_filter, global_filter, stretch_filter, stretch_position

sides = st.integers(1, 9)


@given(sides, sides)
def test_the_same_grid_changes_nothing(normal, height, width):
    weight = normal(height, width // 2 + 1, 3, 2)
    torch.testing.assert_close(stretch_filter(weight, (height, width)), weight)
    embedding = normal(1, height, width, 3)
    torch.testing.assert_close(stretch_position(embedding, (height, width)), embedding)


@given(st.integers(2, 9), st.integers(3, 9), st.integers(2, 12), st.integers(2, 12))
def test_a_stretched_filter_keeps_its_corners(normal, height, width, new_height, new_width):
    weight = normal(height, width // 2 + 1, 2, 2)
    stretched = stretch_filter(weight, (new_height, new_width))
    assert stretched.shape == (new_height, new_width // 2 + 1, 2, 2)
    assert stretched.is_contiguous()
    for row in (0, -1):
        for column in (0, -1):
            torch.testing.assert_close(stretched[row, column], weight[row, column])


def test_each_channel_and_part_is_stretched_by_itself(normal):
    weight = normal(5, 4, 3, 2)
    stretched = stretch_filter(weight, (8, 9))
    for channel in range(3):
        for part in range(2):
            plane = weight[None, None, :, :, channel, part]
            expected = F.interpolate(plane, size=(8, 5), mode="bicubic", align_corners=True)[0, 0]
            torch.testing.assert_close(stretched[:, :, channel, part], expected)


@given(sides, sides, sides, sides)
def test_a_constant_embedding_stays_constant(height, width, new_height, new_width):
    embedding = torch.full((1, height, width, 2), 3.0)
    stretched = stretch_position(embedding, (new_height, new_width))
    assert stretched.shape == (1, new_height, new_width, 2)
    torch.testing.assert_close(stretched, torch.full((1, new_height, new_width, 2), 3.0))


@pytest.mark.parametrize(
    "stretch", [lambda t: stretch_filter(t.unflatten(-1, (3, 2)), (6, 7)), lambda t: stretch_position(t[None], (6, 7))]
)
def test_gradients_reach_the_native_weight(normal, stretch):
    native = normal(4, 4, 6).requires_grad_()
    stretch(native).square().sum().backward()
    assert native.grad.abs().sum() > 0


def response(weight, width):
    """The impulse response (H, W, C) of a filter (H, F, C, 2)."""
    impulse = torch.zeros(1, weight.shape[0], width, weight.shape[2], dtype=weight.dtype)
    impulse[:, 0, 0] = 1
    return global_filter(impulse, weight, lowering="reference")[0]


@given(sides, sides)
def test_crop_pad_to_the_same_grid_changes_no_answer(normal, height, width):
    weight = normal(height, width // 2 + 1, 2, 2)
    fitted = crop_pad_filter(weight, (height, width), (height, width))
    torch.testing.assert_close(response(fitted, width), response(weight, width))


@given(sides, sides, st.integers(0, 6), st.integers(0, 6))
def test_padding_keeps_the_response_in_tokens_and_cropping_undoes_it(normal, height, width, more_rows, more_columns):
    weight = normal(height, width // 2 + 1, 2, 2)
    larger = (height + more_rows, width + more_columns)
    padded = crop_pad_filter(weight, (height, width), larger)
    assert padded.shape == (larger[0], larger[1] // 2 + 1, 2, 2)
    native, grown = response(weight, width), response(padded, larger[1])
    for row in range(-((height - 1) // 2), (height - 1) // 2 + 1):
        for column in range(-((width - 1) // 2), (width - 1) // 2 + 1):
            torch.testing.assert_close(grown[row, column], native[row, column])
    torch.testing.assert_close(grown.sum(dim=(0, 1)), native.sum(dim=(0, 1)))
    back = crop_pad_filter(padded, larger, (height, width))
    torch.testing.assert_close(response(back, width), native)


def test_padding_keeps_a_symmetric_response_symmetric(normal):
    weight = normal(6, 4, 1, 2)
    weight[..., 1] = 0  # a real spectrum,
    weight = (weight + weight[-torch.arange(6) % 6]) / 2  # even along H too
    grown = response(crop_pad_filter(weight, (6, 6), (9, 10)), 10)
    torch.testing.assert_close(grown, grown[-torch.arange(9) % 9][:, -torch.arange(10) % 10])


def test_the_two_ways_differ_in_what_they_keep(normal):
    weight = normal(4, 3, 2, 2)
    assert torch.equal(fit_filter(weight, (7, 7), (4, 4), "stretch"), stretch_filter(weight, (7, 7)))
    assert torch.equal(fit_filter(weight, (7, 7), (4, 4), "crop-pad"), crop_pad_filter(weight, (4, 4), (7, 7)))
