"""The lowering ``triton`` against the definition, in value and gradients: on a GPU, or in Triton's interpreter."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freqformer import ops
from freqformer.ops import afno, dynamic_filter, global_filter, use_lowering
from freqformer.ops import triton as kernels

# Triton 3.4's interpreter, under newer versions of NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ("complex", "real", "per-sample")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRIDS = [(28, 28), (25, 34), (34, 25), (56, 56), (64, 64), (64, 1), (1, 197), (3, 63)]
sides = st.integers(1, 18)
few = settings(max_examples=6)


def value_and_gradients(call, tensors, dy):
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = call(*tensors)
    return [y.detach(), *torch.autograd.grad(y, tensors, dy.to(y))]


def compare(call, plain, tensors, dy, assert_as_good_as, factor):
    """``call(*tensors, lowering=...)`` against its own definition and plain PyTorch.

    Half inputs are multiplied in half precision, and so the gradient of a float32 weight has no better bound.
    """
    dtype = tensors[0].dtype
    ours = value_and_gradients(lambda *t: call(*t, lowering="triton"), [t.to(DEVICE) for t in tensors], dy.to(DEVICE))
    theirs = value_and_gradients(plain, tensors, dy)
    truth = value_and_gradients(lambda *t: call(*t, lowering="reference"), [t.double() for t in tensors], dy.double())
    for tensor, ours_, theirs_, truth_ in zip((tensors[0], *tensors), ours, theirs, truth, strict=True):
        assert ours_.dtype == tensor.dtype
        assert_as_good_as(ours_.cpu().to(dtype), theirs_.to(dtype), truth_, factor)


def compare_filters(normal, filter_shape, plain_filter, assert_as_good_as, kind, dtype, shape, factor=4.0):
    x, dy = normal(*shape, seed=1, dtype=dtype), normal(*shape, seed=2, dtype=dtype)
    weight = normal(*filter_shape(kind, *shape), seed=3, dtype=torch.float32)
    compare(global_filter, plain_filter, (x, weight), dy, assert_as_good_as, factor)


def dynamic_operands(normal, batch, height, width, channels, filters, dtype=torch.float32):
    x = normal(batch, height, width, channels, seed=1, dtype=dtype)
    bank = normal(height, width // 2 + 1, filters, 2, seed=2, dtype=torch.float32)
    return x, bank, normal(batch, filters, channels, seed=3, dtype=torch.float32).softmax(1)


@few
@given(st.sampled_from(KINDS), st.sampled_from(DTYPES), st.integers(1, 5), sides, sides, st.integers(1, 20))
def test_any_grid(normal, filter_shape, plain_filter, assert_as_good_as, kind, dtype, batch, height, width, channels):
    # On grids of a few tokens plain PyTorch is now and then exact: allow what a handful of roundings make.
    shape = (batch, height, width, channels)
    compare_filters(normal, filter_shape, plain_filter, assert_as_good_as, kind, dtype, shape, factor=8.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 7, 7, 17), (2, 14, 14, 5), (1, 1, 21, 3), (2, 1, 1, 3)], ids=str)
def test_every_kind_of_weight(normal, filter_shape, plain_filter, assert_as_good_as, kind, dtype, shape):
    compare_filters(normal, filter_shape, plain_filter, assert_as_good_as, kind, dtype, shape)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "grid", [(28, 28), (25, 34), (34, 25), (56, 56), (64, 64), (64, 1), (1, 197), (3, 63)], ids=str
)
def test_the_grids_of_real_models(normal, filter_shape, plain_filter, assert_as_good_as, kind, dtype, grid):
    compare_filters(normal, filter_shape, plain_filter, assert_as_good_as, kind, dtype, (2, *grid, 3))


@few
# Of one channel the gradient in the routing is one number, whose terms may cancel: no bound on its rounding.
@given(st.sampled_from(DTYPES), st.integers(1, 3), sides, sides, st.integers(6, 18), st.integers(2, 5))
def test_any_mixture(normal, plain_filter, assert_as_good_as, dtype, batch, height, width, channels, filters):
    x, bank, routing = dynamic_operands(normal, batch, height, width, channels, filters, dtype)
    dy = normal(*x.shape, seed=4, dtype=dtype)

    def plain(x, bank, routing):
        return plain_filter(x, torch.einsum("hfkp,bkc->bhfcp", bank, routing))

    compare(dynamic_filter, plain, (x, bank, routing), dy, assert_as_good_as, 8.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_image_with_a_mean(normal, assert_as_good_as, dtype):
    """No rounded constant scales frequency zero: a constant image passes a filter of ones unchanged."""
    x = torch.full((1, 14, 14, 2), 3.0, dtype=dtype, device=DEVICE)
    y = global_filter(x, torch.ones(14, 8, 2, device=DEVICE), lowering="triton")
    torch.testing.assert_close(y, x, rtol=2e-7 if dtype == torch.float32 else 0, atol=0)


def test_half_inputs_do_not_overflow_where_float16_ends():
    x = torch.full((1, 16, 16, 1), 500.0, dtype=torch.float16, device=DEVICE)
    y = global_filter(x, torch.ones(16, 9, 1, device=DEVICE), lowering="triton")
    torch.testing.assert_close(y, x)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_answer_twice(normal, filter_shape, kind):
    shape = (9, 8, 6, 5)
    x, dy = (normal(*shape, seed=seed, dtype=torch.bfloat16).to(DEVICE) for seed in (1, 2))
    weight = normal(*filter_shape(kind, *shape), seed=3, dtype=torch.float32).to(DEVICE)
    once, again = (
        value_and_gradients(lambda x, w: global_filter(x, w, lowering="triton"), (x, weight), dy) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_strides_do_not_matter(normal):
    x = normal(2, 3, 6, 5, dtype=torch.float32).to(DEVICE).permute(0, 2, 3, 1)[:, ::2]
    weight = normal(2, 3, 3, 3, dtype=torch.float32).to(DEVICE).permute(1, 2, 3, 0)
    dy = normal(1, 1, 1, 1, dtype=torch.float32).to(DEVICE).expand(x.shape)

    def call(x, weight):
        return global_filter(x, weight, lowering="triton")

    ours = value_and_gradients(call, (x, weight), dy)
    expected = value_and_gradients(call, (x.contiguous(), weight.contiguous()), dy.contiguous())
    assert ours[0].is_contiguous()
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_the_gradient_that_is_asked_for(normal, wanted):
    tensors = [t.to(DEVICE) for t in dynamic_operands(normal, 2, 4, 5, 3, 2)]
    tensors[wanted].requires_grad_()
    dynamic_filter(*tensors, lowering="triton").sum().backward()
    assert [t.grad is not None for t in tensors] == [position == wanted for position in range(3)]


@pytest.mark.parametrize("shape", [(0, 4, 5, 3), (2, 4, 5, 0)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_filter(normal, filter_shape, kind, shape):
    x = torch.zeros(shape, device=DEVICE, requires_grad=True)
    weight = normal(*filter_shape(kind, *shape), dtype=torch.float32).to(DEVICE).requires_grad_()
    y = global_filter(x, weight, lowering="triton")
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert weight.grad.shape == weight.shape
    assert not weight.grad.any()


@pytest.mark.parametrize(("batch", "channels", "filters"), [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_nothing_to_mix(normal, batch, channels, filters):
    tensors = [t.to(DEVICE).requires_grad_() for t in dynamic_operands(normal, batch, 4, 5, channels, filters)]
    y = dynamic_filter(*tensors, lowering="triton")
    y.sum().backward()
    assert y.shape == tensors[0].shape
    assert not y.any()
    assert not any(t.grad.any() for t in tensors)


@pytest.mark.parametrize("name", ["global_filter", "dynamic_filter"])
def test_torchs_own_checks_of_the_operators(normal, name):
    x, bank, routing = (t.to(DEVICE) for t in dynamic_operands(normal, 2, 4, 5, 3, 2))
    weight = normal(4, 3, 3, 2, seed=1, dtype=torch.float32).to(DEVICE)
    gradient, weights = {
        "global_filter": ("weight_gradient", [weight]),
        "dynamic_filter": ("weight_gradients", [bank, routing]),
    }[name]
    with warnings.catch_warnings():
        # torch's own helper warns about its own future.
        warnings.simplefilter("ignore")
        torch.library.opcheck(getattr(torch.ops.freqformer, f"{name}_triton_{gradient}").default, (x, x, *weights))
        wanted = [t.requires_grad_() for t in (x, *weights)]
        torch.library.opcheck(getattr(torch.ops.freqformer, f"{name}_triton").default, (*wanted, True))


@pytest.mark.parametrize("lowering", ["fft", "triton"])
def test_the_conjugate_filter_and_its_gradients(normal, lowering):
    """The adjoint is an operator too, with gradients of its own."""
    x, dy = (normal(2, 6, 5, 3, seed=seed, dtype=torch.float32).to(DEVICE) for seed in (1, 2))
    weight = normal(6, 3, 3, 2, seed=3, dtype=torch.float32).to(DEVICE)
    operator = getattr(torch.ops.freqformer, f"global_filter_{lowering}")
    ours = value_and_gradients(lambda x, w: operator(x, w, True), (x, weight), dy)
    sign = torch.tensor([1.0, -1.0], device=DEVICE)
    expected = value_and_gradients(lambda x, w: global_filter(x, w * sign, lowering="reference"), (x, weight), dy)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_compiled_graph_has_no_break_and_the_same_gradients(normal):
    tensors = [t.to(DEVICE) for t in dynamic_operands(normal, 2, 6, 5, 4, 2)]
    weight = normal(6, 3, 4, 2, seed=5, dtype=torch.float32).to(DEVICE)

    def mixed(x, bank, routing, weight):
        with use_lowering("triton"):
            return dynamic_filter(2 * global_filter(x + 1, weight), bank, routing)

    torch.compiler.reset()
    compiled = torch.compile(mixed, fullgraph=True, backend="aot_eager")
    dy = normal(*tensors[0].shape, seed=6, dtype=torch.float32).to(DEVICE)
    for a, b in zip(*(value_and_gradients(f, (*tensors, weight), dy) for f in (compiled, mixed)), strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_sets_the_dtype_of_the_answer(normal):
    x = normal(2, 7, 7, 4, dtype=torch.float32).to(DEVICE)
    weight = normal(7, 4, 4, 2, dtype=torch.float32).to(DEVICE).requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16):
        y = global_filter(x, weight, lowering="triton")
    assert torch.equal(y, global_filter(x.bfloat16(), weight, lowering="triton"))
    y.sum().backward()
    assert weight.grad.dtype == torch.float32


def test_it_can_be_made_without_data():
    x, weight = torch.empty(2, 7, 6, 3, device="meta"), torch.empty(7, 4, 3, 2, device="meta")
    assert global_filter(x, weight, lowering="triton").shape == x.shape


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(1, 4, 4, 1, dtype=torch.float64), TypeError, "float64.*lowering='fft'"),
        (torch.zeros(1, 4, 65, 1), ValueError, "64x64.*not 4x65.*lowering='fft'"),
        (torch.zeros(1, 1, 1025, 1), ValueError, "1x1024.*lowering='fft'"),
    ],
)
def test_what_it_does_not_take_is_named_in_one_line(x, error, message):
    weight = torch.zeros(x.shape[1], x.shape[2] // 2 + 1, 1, dtype=x.dtype)
    with pytest.raises(error, match=message) as raised:
        global_filter(x.to(DEVICE), weight.to(DEVICE), lowering="triton")
    assert "\n" not in str(raised.value)


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch):
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    with pytest.raises(ValueError, match=r"needs a GPU.*cpu.*lowering='dft'"):
        global_filter(torch.zeros(1, 4, 4, 1), torch.zeros(4, 3, 1), lowering="triton")


def test_without_triton_it_says_so_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, kernels.__name__)
    monkeypatch.delattr(ops, "triton")
    with pytest.raises(ImportError, match="needs the triton package"):
        global_filter(torch.zeros(1, 2, 2, 1), torch.zeros(2, 2, 1), lowering="triton")


def test_afno_has_no_such_lowering(normal):
    tensors = [normal(*shape) for shape in ((1, 4, 4, 2), (2, 1, 2, 3), (2, 1, 3), (2, 1, 3, 2), (2, 1, 2))]
    with pytest.raises(ValueError, match=r"afno has no lowering 'triton'.*'fft'"):
        afno(*tensors, lowering="triton")
    with use_lowering("triton"), pytest.raises(ValueError, match="afno has no lowering 'triton'"):
        afno(*tensors)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("kernel", ["filter", "gradient"])
def test_every_grid_has_tile_sizes(kernel, itemsize):
    sides = (1, 2, 7, 16, 17, 32, 33, 64)
    sequences = [(1, width) for width in (65, 129, 197, 257, 513, 1024)]
    for height, width in [(height, width) for height in sides for width in sides] + sequences:
        assert kernels._suitable(kernel, height, width, itemsize), f"{height}x{width}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "dtype", "filters", "grids"),
    [
        ("filter", "bf16", 0, "14x14 28x28 56x56 64x64 1x1024"),
        ("filter", "bf16", 4, "56x56"),
        ("filter", "fp32", 0, "56x56 1x1024"),
        ("gradient", "bf16", 0, "14x14 28x28 56x56 64x64 1x1024"),
        ("gradient", "bf16", 4, "56x56"),
        ("gradient", "fp32", 0, "56x56"),
    ],
)
def test_every_configuration_fits_on_a_hopper_gpu(kernel, dtype, filters, grids):
    """Compiled for the chip without having it; in half precision some configuration spills next to nothing."""
    command = [sys.executable, str(Path(__file__).parent / "hopper.py"), kernel, dtype, str(filters), *grids.split()]
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    for grid in grids.split():
        of_grid = [row for row in rows if row["grid"] == grid]
        assert of_grid
        assert max(row["shared"] for row in of_grid) <= 227 * 1024
        if dtype == "bf16":
            assert any(row["wgmma"] for row in of_grid) or grid.startswith("1x")
            assert min(row.get("spilled", 0) for row in of_grid) <= 32
