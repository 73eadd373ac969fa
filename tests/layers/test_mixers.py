import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Mlp

from freqformer.layers import Attention, Block, GlobalFilter, Stage

sides = st.integers(1, 9)


def grid(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


def mixer(height, width, dim=3):
    torch.manual_seed(0)
    layer = GlobalFilter(dim, (height, width)).double()
    torch.nn.init.normal_(layer.complex_weight)
    return layer


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (1, 12), (16, 16), (17, 16), (20, 21)])
@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_scaled_dot_product_attention(size, heads):
    torch.manual_seed(0)
    layer = Attention(16, heads).double()
    x = grid(2, *size, 16).requires_grad_()
    y = layer(x)

    tokens = x.flatten(1, 2)
    q, k, v = F.linear(tokens, layer.qkv.weight, layer.qkv.bias).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    expected = F.linear(mixed, layer.proj.weight, layer.proj.bias).unflatten(1, size)
    torch.testing.assert_close(y, expected)

    dy = grid(*y.shape)
    ours, theirs = (torch.autograd.grad(out, x, dy)[0] for out in (y, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [(4, 4), (18, 18)])
def test_attention_knows_no_order_of_tokens(size):
    torch.manual_seed(0)
    layer = Attention(8, 2).double()
    x = grid(1, *size, 8)
    torch.testing.assert_close(layer(x.flip(1, 2)), layer(x).flip(1, 2))


def test_attention_refuses_heads_that_do_not_divide_the_channels():
    with pytest.raises(ValueError, match="num_heads"):
        Attention(16, 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), sides, sides)
def test_on_its_native_grid_a_filter_multiplies_the_spectrum(batch, height, width):
    layer = mixer(height, width)
    x = grid(batch, height, width, 3)
    weight = torch.view_as_complex(layer.complex_weight.detach()).numpy()
    spectrum = np.fft.rfft2(x.numpy(), axes=(1, 2), norm="ortho") * weight
    expected = np.fft.irfft2(spectrum, s=(height, width), axes=(1, 2), norm="ortho")
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(sides, sides, sides, sides)
def test_on_another_grid_the_half_spectrum_is_stretched(height, width, new_height, new_width):
    layer = mixer(height, width)
    planes = layer.complex_weight.detach().permute(2, 3, 0, 1)
    planes = F.interpolate(planes, size=(new_height, new_width // 2 + 1), mode="bicubic", align_corners=True)
    native = mixer(new_height, new_width)
    native.complex_weight.data = planes.permute(2, 3, 0, 1).contiguous()
    x = grid(2, new_height, new_width, 3)
    torch.testing.assert_close(layer(x), native(x))


@settings(max_examples=30, deadline=None)
@given(sides, sides, sides, sides, st.floats(-3, 3))
def test_a_flat_filter_scales_on_every_grid(height, width, new_height, new_width, factor):
    layer = mixer(height, width)
    with torch.no_grad():
        layer.complex_weight.copy_(torch.tensor([factor, 0.0]).expand_as(layer.complex_weight))
    x = grid(1, new_height, new_width, 3)
    torch.testing.assert_close(layer(x), x * factor)


def test_the_first_and_the_last_frequency_stay_where_they_are():
    layer = mixer(4, 6)
    layer.complex_weight.data[..., 1] = 0
    x = torch.ones(1, 8, 10, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0, 0, 0], layer.complex_weight[0, 0, :, 0])


def test_a_filter_says_its_size():
    assert "filters=3" in repr(mixer(4, 6))
    assert "(4, 6)" in repr(mixer(4, 6))


@pytest.mark.parametrize("mixer_residual", [False, True])
def test_a_block_with_silent_parts(mixer_residual):
    """A mixer that returns nothing leaves the MLP of the norm's bias, or of the input where it has a residual."""

    class Zero(torch.nn.Module):
        def forward(self, x):
            return 0 * x

    torch.manual_seed(0)
    block = Block(8, Zero(), Mlp(8, 16), mixer_residual=mixer_residual, drop_path=0.0).double()
    x = grid(2, 3, 4, 8)
    inner = x if mixer_residual else torch.zeros_like(x)
    torch.testing.assert_close(block(x), x + block.mlp(F.layer_norm(inner, (8,), eps=1e-6)))


def test_a_stage_runs_its_blocks_in_order():
    torch.manual_seed(0)
    blocks = [Block(8, Attention(8, 2), Mlp(8, 16), mixer_residual=True, drop_path=0.0).double() for _ in range(2)]
    x = grid(1, 3, 3, 8)
    torch.testing.assert_close(Stage(blocks)(x), blocks[1](blocks[0](x)))
