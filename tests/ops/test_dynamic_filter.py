"""The dynamic filter in every lowering, and as the global filter with a mixture of weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freqformer.ops import dynamic_filter, global_filter

FAST = ("fft", "dft")
sides = st.integers(1, 9)


def operands(normal, batch, height, width, channels, filters, dtype=torch.float64):
    x = normal(batch, height, width, channels, seed=1, dtype=dtype)
    bank = normal(height, width // 2 + 1, filters, 2, seed=2, dtype=torch.promote_types(dtype, torch.float32))
    routing = normal(batch, filters, channels, seed=3, dtype=torch.promote_types(dtype, torch.float32)).softmax(1)
    return x, bank, routing


def value_and_gradients(call, tensors, dy):
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = call(*tensors)
    return y.detach(), *torch.autograd.grad(y, tensors, dy.to(y.dtype))


@pytest.mark.parametrize("lowering", ["reference", "fft", "dft"])
@given(st.integers(0, 3), sides, sides, st.integers(1, 4), st.integers(1, 4))
def test_it_is_the_global_filter_with_each_samples_mixture(normal, lowering, batch, height, width, channels, filters):
    x, bank, routing = operands(normal, batch, height, width, channels, filters)
    weight = sum(bank[None, :, :, k, None] * routing[:, None, None, k, :, None] for k in range(filters))
    torch.testing.assert_close(
        dynamic_filter(x, bank, routing, lowering=lowering), global_filter(x, weight, lowering="reference")
    )


@given(
    st.sampled_from(FAST),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.integers(1, 3),
    sides,
    sides,
    # The gradient in the routing of one channel is one number, whose terms may cancel: no bound on its rounding.
    st.integers(6, 9),
    st.integers(2, 4),
)
def test_every_lowering_in_value_and_gradients(
    normal, plain_filter, assert_as_good_as, lowering, dtype, batch, height, width, channels, filters
):
    x, bank, routing = operands(normal, batch, height, width, channels, filters, dtype)
    dy = normal(*x.shape, seed=4, dtype=dtype)

    def plain(x, bank, routing):
        return plain_filter(x, torch.einsum("hfkp,bkc->bhfcp", bank, routing))

    ours = value_and_gradients(lambda *t: dynamic_filter(*t, lowering=lowering), (x, bank, routing), dy)
    theirs = value_and_gradients(plain, (x, bank, routing), dy)
    truth = value_and_gradients(
        lambda *t: dynamic_filter(*t, lowering="reference"), (x.double(), bank.double(), routing.double()), dy.double()
    )
    for ours_, plain_, truth_ in zip(ours, theirs, truth, strict=True):
        if lowering == "dft" and dtype == torch.bfloat16:
            # It multiplies in bfloat16, so the gradients of float32 weights have no better bound.
            ours_, plain_ = ours_.to(dtype), plain_.to(dtype)
        assert_as_good_as(ours_, plain_, truth_, 8.0)


@pytest.mark.parametrize("lowering", FAST)
@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (3, 4), (4, 3)], ids=str)
def test_gradients_are_those_of_the_function(normal, lowering, grid):
    tensors = [t.requires_grad_() for t in operands(normal, 2, *grid, 3, 2)]
    assert torch.autograd.gradcheck(lambda *t: dynamic_filter(*t, lowering=lowering), tensors)


@pytest.mark.parametrize("lowering", FAST)
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_the_gradient_that_is_asked_for(normal, lowering, wanted):
    tensors = list(operands(normal, 2, 4, 5, 3, 2))
    tensors[wanted].requires_grad_()
    dynamic_filter(*tensors, lowering=lowering).sum().backward()
    assert [t.grad is not None for t in tensors] == [i == wanted for i in range(3)]


@pytest.mark.parametrize("lowering", FAST)
def test_an_empty_batch(normal, lowering):
    tensors = [t.requires_grad_() for t in operands(normal, 0, 4, 5, 3, 2)]
    dynamic_filter(*tensors, lowering=lowering).sum().backward()
    assert [t.grad.shape for t in tensors] == [t.shape for t in tensors]
    assert not tensors[1].grad.any()


@pytest.mark.parametrize("lowering", FAST)
def test_autocast_sets_the_dtype_of_the_answer(normal, lowering):
    x, bank, routing = operands(normal, 2, 7, 7, 4, 3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = dynamic_filter(x, bank, routing, lowering=lowering)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, dynamic_filter(x.bfloat16(), bank, routing, lowering=lowering), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("x", "bank", "routing", "error", "message"),
    [
        ((1, 4, 4, 2), (4, 3, 5, 2), (1, 5, 3), ValueError, r"\(1, 5, 3\).*\(1, 4, 4, 2\).*\(1, 5, 2\)"),
        ((1, 4, 4, 2), (4, 3, 5, 2), (2, 5, 2), ValueError, r"\(B, K, C\) = \(1, 5, 2\)"),
        ((1, 4, 4, 2), (7, 4, 5, 2), (1, 5, 2), ValueError, r"\(7, 4, 5, 2\).*\(1, 4, 4, 2\).*\(4, 3, 5, 2\)"),
        ((1, 4, 4, 2), (4, 3, 5), (1, 5, 2), ValueError, r"\(H, F, K, 2\)"),
        ((4, 4, 2), (4, 3, 5, 2), (1, 5, 2), ValueError, r"\(B, H, W, C\)"),
    ],
)
def test_wrong_shapes_are_named(x, bank, routing, error, message):
    with pytest.raises(error, match=message):
        dynamic_filter(torch.zeros(x), torch.zeros(bank), torch.zeros(routing))


def test_wrong_kinds_are_named():
    x, bank, routing = torch.zeros(1, 4, 4, 2), torch.zeros(4, 3, 5, 2), torch.zeros(1, 5, 2)
    with pytest.raises(TypeError, match="complex64"):
        dynamic_filter(x.cfloat(), bank, routing)
    with pytest.raises(TypeError, match="routing"):
        dynamic_filter(x, bank, routing.long())
    with pytest.raises(ValueError, match="meta"):
        dynamic_filter(x, bank.to("meta"), routing)
    with pytest.raises(ValueError, match="'fast'"):
        dynamic_filter(x, bank, routing, lowering="fast")
