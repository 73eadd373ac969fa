"""AFNO in every lowering, and against a bin-by-bin computation in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freqformer.ops import afno

FAST = ("fft", "dft")
sides = st.integers(1, 8)


def operands(normal, batch, height, width, blocks=2, size=2, hidden=3, dtype=torch.float64):
    weights = torch.promote_types(dtype, torch.float32)
    return (
        normal(batch, height, width, blocks * size, seed=1, dtype=dtype),
        normal(2, blocks, size, hidden, seed=2, dtype=weights),
        normal(2, blocks, hidden, seed=3, dtype=weights),
        normal(2, blocks, hidden, size, seed=4, dtype=weights),
        normal(2, blocks, size, seed=5, dtype=weights),
    )


def value_and_gradients(call, tensors, dy):
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = call(*tensors)
    return y.detach(), *torch.autograd.grad(y, tensors, dy.to(y.dtype))


@given(st.integers(1, 2), sides, sides, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_it_is_a_perceptron_on_every_bin(normal, batch, height, width, blocks, size, hidden):
    x, w1, b1, w2, b2 = (t.numpy() for t in operands(normal, batch, height, width, blocks, size, hidden))
    bins = np.fft.rfft2(x, axes=(1, 2), norm="ortho")
    output = np.empty_like(bins)
    for block in range(blocks):
        part = slice(block * size, (block + 1) * size)
        first = bins[..., part] @ (w1[0, block] + 1j * w1[1, block]) + b1[0, block] + 1j * b1[1, block]
        first = np.maximum(first.real, 0) + 1j * np.maximum(first.imag, 0)
        output[..., part] = first @ (w2[0, block] + 1j * w2[1, block]) + b2[0, block] + 1j * b2[1, block]
    shrunk = [np.sign(v) * np.maximum(np.abs(v) - 0.1, 0) for v in (output.real, output.imag)]
    expected = np.fft.irfft2(shrunk[0] + 1j * shrunk[1], s=(height, width), axes=(1, 2), norm="ortho")
    for lowering in ("reference", *FAST):
        tensors = [torch.from_numpy(v) for v in (x, w1, b1, w2, b2)]
        np.testing.assert_allclose(afno(*tensors, threshold=0.1, lowering=lowering), expected, atol=1e-12)


@given(st.sampled_from(FAST), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(1, 2), sides, sides)
def test_every_lowering_in_value_and_gradients(normal, lowering, dtype, batch, height, width):
    tensors = operands(normal, batch, height, width, dtype=dtype)
    dy = normal(*tensors[0].shape, seed=6, dtype=dtype)
    ours = value_and_gradients(lambda *t: afno(*t, lowering=lowering), tensors, dy)
    truth = value_and_gradients(lambda *t: afno(*t, lowering="reference"), [t.double() for t in tensors], dy.double())
    for ours_, truth_ in zip(ours, truth, strict=True):
        # A rounding may turn a unit on or off, so the bound is on the whole.
        error = (ours_.double() - truth_).norm() / truth_.norm().clamp_min(1e-6)
        assert error <= 20 * torch.finfo(ours_.dtype).eps


@pytest.mark.parametrize("lowering", FAST)
@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (3, 4), (4, 3)], ids=str)
def test_gradients_are_those_of_the_function(normal, lowering, grid):
    tensors = [t.requires_grad_() for t in operands(normal, 2, *grid)]
    assert torch.autograd.gradcheck(lambda *t: afno(*t, lowering=lowering), tensors)


@pytest.mark.parametrize("lowering", FAST)
def test_an_empty_batch(normal, lowering):
    tensors = [t.requires_grad_() for t in operands(normal, 0, 4, 5)]
    y = afno(*tensors, lowering=lowering)
    y.sum().backward()
    assert y.shape == (0, 4, 5, 4)
    assert not tensors[1].grad.any()


@pytest.mark.parametrize("lowering", FAST)
def test_autocast_sets_the_dtype_of_the_answer(normal, lowering):
    tensors = operands(normal, 2, 5, 6, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = afno(*tensors, lowering=lowering)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, afno(tensors[0].bfloat16(), *tensors[1:], lowering=lowering), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (4, 4, 4), r"\(B, H, W, C\)"),
        (0, (1, 4, 4, 5), r"K \* S = 5"),
        (1, (2, 2, 6), r"\(2, K, S, T\)"),
        (2, (2, 2, 4), r"b1.*\(2, 2, 3\)"),
        (3, (2, 2, 2, 3), r"w2.*\(2, 2, 3, 2\)"),
        (4, (2, 3), r"b2.*\(2, 2, 2\)"),
    ],
)
def test_wrong_shapes_are_named(normal, position, shape, message):
    tensors = list(operands(normal, 1, 4, 4))
    tensors[position] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        afno(*tensors)


def test_wrong_settings_are_named(normal):
    tensors = operands(normal, 1, 4, 4)
    with pytest.raises(ValueError, match="threshold"):
        afno(*tensors, threshold=-1.0)
    with pytest.raises(TypeError, match=r"w1.*complex"):
        afno(tensors[0], tensors[1].cdouble(), *tensors[2:])
