import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from freqformer.ops import stretch_filter, stretch_position

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
