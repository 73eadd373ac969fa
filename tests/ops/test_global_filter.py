"""Every lowering against the definition, in value and gradients, over the space of inputs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freqformer.ops import global_filter, use_lowering

FAST = ("fft", "dft")
KINDS = ("complex", "real", "per-sample")
GRIDS = [(1, 1), (1, 7), (1, 8), (6, 1), (2, 2), (7, 7), (14, 14), (13, 11), (5, 12), (12, 5), (25, 34), (40, 33)]
fast = st.sampled_from(FAST)
kinds = st.sampled_from(KINDS)
sides = st.integers(1, 12)


def value_and_gradients(filtered, x, weight, dy):
    """What ``filtered(x, weight)`` returns, and its gradients in both."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = filtered(x, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), dy.to(y.dtype))


def compare(x, weight, dy, lowering, plain_filter, assert_as_good_as, factor=3.0):
    ours = value_and_gradients(lambda x, w: global_filter(x, w, lowering=lowering), x, weight, dy)
    plain = value_and_gradients(plain_filter, x, weight, dy)
    truth = value_and_gradients(
        lambda x, w: global_filter(x, w, lowering="reference"), x.double(), weight.double(), dy.double()
    )
    for ours_, plain_, truth_ in zip(ours, plain, truth, strict=True):
        if lowering == "dft" and x.dtype == torch.bfloat16:
            # It multiplies in bfloat16, so the gradient of a float32 weight has no better bound.
            ours_, plain_ = ours_.to(x.dtype), plain_.to(x.dtype)
        assert_as_good_as(ours_, plain_, truth_, factor)


@given(fast, kinds, st.sampled_from([torch.float64, torch.float32]), st.integers(1, 3), sides, sides, st.integers(1, 5))
def test_full_precision(
    normal, filter_shape, plain_filter, assert_as_good_as, lowering, kind, dtype, batch, height, width, channels
):
    shape = (batch, height, width, channels)
    x, dy = normal(*shape, seed=1, dtype=dtype), normal(*shape, seed=2, dtype=dtype)
    weight = normal(*filter_shape(kind, *shape), seed=3, dtype=dtype)
    # On grids of a few tokens plain PyTorch is now and then exact: allow what a handful of roundings make.
    compare(x, weight, dy, lowering, plain_filter, assert_as_good_as, factor=8.0)


@given(fast, kinds, st.sampled_from([torch.bfloat16, torch.float16]), st.integers(1, 3), sides, sides)
def test_half_precision(
    normal, filter_shape, plain_filter, assert_as_good_as, lowering, kind, dtype, batch, height, width
):
    """Half inputs with float32 weights, as under autocast."""
    shape = (batch, height, width, 4)
    x, dy = normal(*shape, seed=1, dtype=dtype), normal(*shape, seed=2, dtype=dtype)
    weight = normal(*filter_shape(kind, *shape), seed=3, dtype=torch.float32)
    compare(x, weight, dy, lowering, plain_filter, assert_as_good_as)


@pytest.mark.parametrize("lowering", FAST)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_grids_of_real_models(normal, filter_shape, plain_filter, assert_as_good_as, lowering, grid, dtype):
    shape = (2, *grid, 16)
    x, dy = normal(*shape, seed=1, dtype=dtype), normal(*shape, seed=2, dtype=dtype)
    weight = normal(*filter_shape("complex", *shape), seed=3, dtype=torch.float32)
    compare(x, weight, dy, lowering, plain_filter, assert_as_good_as, factor=4.0)


@pytest.mark.parametrize("lowering", FAST)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (2, 2), (3, 4), (4, 3)], ids=str)
def test_gradients_are_those_of_the_function(normal, filter_shape, lowering, kind, grid):
    shape = (2, *grid, 2)
    x = normal(*shape, seed=1).requires_grad_()
    weight = normal(*filter_shape(kind, *shape), seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: global_filter(x, w, lowering=lowering), (x, weight))


@pytest.mark.parametrize("lowering", ["fft", "dft"])
@pytest.mark.parametrize("grid", [(4, 4), (5, 6), (6, 5), (1, 8)], ids=str)
def test_the_part_that_is_dropped_gets_no_gradient(normal, lowering, grid):
    height, width = grid
    x, dy = normal(2, *grid, 3, seed=1), normal(2, *grid, 3, seed=2)
    weight = normal(height, width // 2 + 1, 3, 2, seed=3).requires_grad_()
    (gradient,) = torch.autograd.grad(global_filter(x, weight, lowering=lowering), weight, dy)
    gradient = torch.view_as_complex(gradient)
    mirror = -torch.arange(height) % height
    for column in {0, width // 2} if width % 2 == 0 else {0}:
        values = gradient[:, column]
        torch.testing.assert_close(values, values[mirror].conj().resolve_conj())


@pytest.mark.parametrize("lowering", FAST)
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch(normal, filter_shape, lowering, kind):
    x = normal(0, 4, 5, 3).requires_grad_()
    weight = normal(*filter_shape(kind, 0, 4, 5, 3)).requires_grad_()
    y = global_filter(x, weight, lowering=lowering)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 4, 5, 3)
    assert weight.grad.shape == weight.shape
    assert not weight.grad.any()


@pytest.mark.parametrize("lowering", ["reference", "fft", "dft"])
def test_strides_do_not_matter(normal, lowering):
    x = normal(2, 3, 6, 5)
    weight = normal(2, 6, 4, 3)
    channels_first = x.permute(0, 2, 3, 1)[:, ::2]
    scattered = weight.permute(1, 2, 3, 0)[:3, :, :, :]
    scattered = torch.cat([scattered, scattered], dim=2)[:, :4, ::2]
    channels_first = channels_first[..., :3]
    dy = normal(2, 3, 5, 3, seed=9)
    scattered = scattered[:, :3]
    y = global_filter(channels_first, scattered, lowering=lowering)
    torch.testing.assert_close(y, global_filter(channels_first.contiguous(), scattered.contiguous(), lowering=lowering))
    ours = value_and_gradients(lambda x, w: global_filter(x, w, lowering=lowering), channels_first, scattered, dy)
    truth = value_and_gradients(
        lambda x, w: global_filter(x, w, lowering="reference"), channels_first.contiguous(), scattered.contiguous(), dy
    )
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("lowering", FAST)
def test_a_gradient_that_is_expanded(normal, lowering):
    """``y.sum().backward()`` hands over a gradient without strides."""
    x = normal(2, 4, 6, 3).requires_grad_()
    weight = normal(4, 4, 3, 2, seed=1).requires_grad_()
    global_filter(x, weight, lowering=lowering).sum().backward()
    # The sum reads the spectrum at frequency zero alone.
    torch.testing.assert_close(x.grad, weight[0, 0, :, 0].detach().expand(2, 4, 6, 3))


@pytest.mark.parametrize("lowering", FAST)
@given(st.integers(0, 8), st.integers(0, 8))
def test_a_shifted_image_gives_a_shifted_answer(normal, lowering, rows, columns):
    x = normal(1, 7, 8, 2)
    weight = normal(7, 5, 2, 2, seed=1)
    shift = {"shifts": (rows, columns), "dims": (1, 2)}
    torch.testing.assert_close(
        global_filter(x.roll(**shift), weight, lowering=lowering),
        global_filter(x, weight, lowering=lowering).roll(**shift),
    )


@pytest.mark.parametrize("lowering", FAST)
def test_only_the_gradient_that_is_asked_for(normal, lowering):
    x, weight = normal(1, 4, 4, 2), normal(4, 3, 2, 2)
    global_filter(x.requires_grad_(), weight, lowering=lowering).sum().backward()
    assert x.grad is not None
    assert weight.grad is None
    x = x.detach()
    global_filter(x, weight.requires_grad_(), lowering=lowering).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("lowering", FAST)
def test_a_sequence_is_a_grid_of_height_one(normal, lowering):
    tokens, weight = normal(2, 9, 4), normal(5, 4, 2)
    y = global_filter(tokens.unsqueeze(1), weight.unsqueeze(0), lowering=lowering).squeeze(1)
    spectrum = torch.fft.rfft(tokens, dim=1) * torch.view_as_complex(weight)
    torch.testing.assert_close(y, torch.fft.irfft(spectrum, n=9, dim=1))


@pytest.mark.parametrize("lowering", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_sets_the_dtype_of_the_answer(normal, lowering, dtype):
    x = normal(2, 7, 7, 4, dtype=torch.float32)
    weight = normal(7, 4, 4, 2, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype):
        y = global_filter(x, weight, lowering=lowering)
    assert y.dtype == dtype
    torch.testing.assert_close(y, global_filter(x.to(dtype), weight, lowering=lowering), rtol=0, atol=0)
    y.sum().backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("lowering", FAST)
def test_autocast_leaves_float64_alone(normal, lowering):
    x, weight = normal(2, 7, 7, 4), normal(7, 4, 4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y = global_filter(x, weight, lowering=lowering)
    torch.testing.assert_close(y, global_filter(x, weight, lowering="reference"))


@pytest.mark.parametrize("lowering", FAST)
@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (25, 34)], ids=str)
def test_half_precision_keeps_the_mean_of_an_image(normal, lowering, grid):
    """No rounded constant scales frequency zero: of a constant image only the filter and the result are rounded."""
    x = torch.full((1, *grid, 2), 3.0, dtype=torch.bfloat16)
    y = global_filter(x, torch.ones(grid[0], grid[1] // 2 + 1, 2), lowering=lowering)
    torch.testing.assert_close(y.mean(dtype=torch.float64), x.mean(dtype=torch.float64), rtol=2**-7, atol=0)


def test_use_lowering_reaches_calls_inside_it_and_nothing_else(normal):
    x, weight = normal(1, 6, 6, 2, dtype=torch.float32), normal(6, 4, 2, 2, dtype=torch.float32)
    named = {name: global_filter(x, weight, lowering=name) for name in ("reference", "fft", "dft")}
    for name, expected in named.items():
        with use_lowering(name):
            assert torch.equal(global_filter(x, weight), expected)
            assert torch.equal(global_filter(x, weight, lowering="reference"), named["reference"])
    with pytest.raises(RuntimeError, match="stop"), use_lowering("reference"):
        raise RuntimeError("stop")
    assert torch.equal(global_filter(x, weight), named["dft"])


def test_nested_overrides_end_one_by_one(normal):
    x, weight = normal(1, 6, 6, 2, dtype=torch.float32), normal(6, 4, 2, 2, dtype=torch.float32)
    with use_lowering("reference"):
        with use_lowering("fft"):
            pass
        assert torch.equal(global_filter(x, weight), global_filter(x, weight, lowering="reference"))


@pytest.mark.parametrize(
    "call", [lambda x, w: global_filter(x, w, lowering="fast"), lambda x, w: use_lowering("fast").__enter__()]
)
def test_a_lowering_that_does_not_exist(normal, call):
    with pytest.raises(ValueError, match=r"'fast'.*reference, fft, dft"):
        call(normal(1, 2, 2, 1), normal(2, 2, 1, 2))


@pytest.mark.parametrize(
    ("x", "weight", "error", "message"),
    [
        (torch.zeros(1, 4, 4, 2, dtype=torch.complex64), torch.zeros(4, 3, 2, 2), TypeError, "complex64.*tokens"),
        (torch.zeros(1, 4, 4, 2, dtype=torch.int64), torch.zeros(4, 3, 2, 2), TypeError, "int64"),
        (torch.zeros(1, 4, 4, 2), torch.zeros(4, 3, 2, dtype=torch.complex64), TypeError, "view_as_real"),
        (torch.zeros(4, 4, 2), torch.zeros(4, 3, 2, 2), ValueError, r"\(4, 4, 2\)"),
        (torch.zeros(1, 16, 2), torch.zeros(4, 3, 2, 2), ValueError, r"\(B, H, W, C\)"),
        (torch.zeros(1, 4, 4, 2), torch.zeros(4, 3), ValueError, r"\(H, F, C, 2\)"),
        (
            torch.zeros(1, 4, 4, 2),
            torch.zeros(7, 4, 2, 2),
            ValueError,
            r"\(7, 4, 2, 2\).*\(1, 4, 4, 2\).*\(4, 3, 2, 2\)",
        ),
        (torch.zeros(1, 4, 4, 2), torch.zeros(4, 4, 2, 2), ValueError, r"\(4, 3, 2, 2\)"),
        (torch.zeros(3, 4, 4, 2), torch.zeros(2, 4, 3, 2, 2), ValueError, r"\(3, 4, 3, 2, 2\)"),
        (torch.zeros(1, 4, 4, 2), torch.zeros(4, 3, 1), ValueError, r"\(4, 3, 2\)"),
        (torch.zeros(1, 4, 4, 2), torch.zeros(4, 3, 2, 2, device="meta"), ValueError, "cpu.*meta"),
        (torch.zeros(1, 0, 4, 2), torch.zeros(0, 3, 2, 2), ValueError, "token"),
    ],
)
def test_wrong_input_is_named_in_one_line(x, weight, error, message):
    with pytest.raises(error, match=message) as raised:
        global_filter(x, weight)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("lowering", FAST)
def test_it_can_be_made_without_data(lowering):
    """The shapes are known on the meta device, as when a large model is built there."""
    y = global_filter(torch.empty(2, 7, 6, 3, device="meta"), torch.empty(7, 4, 3, 2, device="meta"), lowering=lowering)
    assert y.shape == (2, 7, 6, 3)
    assert y.device.type == "meta"
