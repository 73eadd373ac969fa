"""The operation inside torch.compile, exporters and torch's own checks of operators."""

import warnings

import pytest
import torch

from freqformer.ops import afno, dynamic_filter, global_filter, use_lowering

KINDS = ("complex", "real", "per-sample")


def operands(normal, filter_shape, kind="complex", dtype=torch.float32):
    shape = (2, 6, 6, 3)
    x = normal(*shape, seed=1, dtype=dtype).requires_grad_()
    return x, normal(*filter_shape(kind, *shape), seed=2, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
def test_torchs_own_checks_of_the_operator(normal, filter_shape, kind):
    with warnings.catch_warnings():
        # torch's own helper warns about its own future.
        warnings.simplefilter("ignore")
        x, weight = operands(normal, filter_shape, kind, torch.float64)
        torch.library.opcheck(torch.ops.freqformer.global_filter_fft.default, (x, weight))
        gradient = torch.ops.freqformer.global_filter_fft_weight_gradient.default
        torch.library.opcheck(gradient, (x.detach(), x.detach(), weight.detach()))


@pytest.mark.parametrize("lowering", ["fft", "dft"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_graph_has_no_break_and_the_same_gradients(normal, filter_shape, lowering, kind):
    """A lazy conjugate inside a registered operator is lost here: gradients would be of another filter."""
    x, weight = operands(normal, filter_shape, kind)

    def scaled(x, weight):
        return 2 * global_filter(x + 1, weight, lowering=lowering)

    torch.compiler.reset()
    eager = torch.autograd.grad(scaled(x, weight).square().sum(), (x, weight))
    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight), scaled(x, weight))
    ours = torch.autograd.grad(compiled(x, weight).square().sum(), (x, weight))
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b)


def other_operations(normal):
    """The operations beside the global filter, as (call, tensors)."""
    x = normal(2, 6, 5, 4, seed=1, dtype=torch.float32)
    bank, routing = normal(6, 3, 3, 2, seed=2, dtype=torch.float32), normal(2, 3, 4, seed=3, dtype=torch.float32)
    weights = [
        normal(*shape, seed=4, dtype=torch.float32) for shape in ((2, 2, 2, 3), (2, 2, 3), (2, 2, 3, 2), (2, 2, 2))
    ]
    return {"dynamic_filter": (dynamic_filter, (x, bank, routing)), "afno": (afno, (x, *weights))}


@pytest.mark.parametrize("name", ["dynamic_filter_fft", "dynamic_filter_fft_weight_gradients", "rfft2", "irfft2"])
def test_torchs_own_checks_of_the_other_operators(normal, name):
    x, bank, routing = normal(2, 4, 5, 3), normal(4, 3, 2, 2, seed=1), normal(2, 2, 3, seed=2)
    inputs = {
        "dynamic_filter_fft": (x.requires_grad_(), bank.requires_grad_(), routing.requires_grad_()),
        "dynamic_filter_fft_weight_gradients": (x.detach(), x.detach(), bank.detach(), routing.detach()),
        "rfft2": (x.requires_grad_(),),
        "irfft2": (normal(2, 4, 3, 3, 2).requires_grad_(), 5),
    }[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(getattr(torch.ops.freqformer, name).default, inputs)


@pytest.mark.parametrize("lowering", ["fft", "dft"])
@pytest.mark.parametrize("name", ["dynamic_filter", "afno"])
def test_the_other_operations_compile_in_one_graph(normal, lowering, name):
    call, tensors = other_operations(normal)[name]
    tensors = [t.requires_grad_() for t in tensors]
    torch.compiler.reset()
    compiled = torch.compile(lambda *t: call(*t, lowering=lowering), fullgraph=True, backend="aot_eager")
    y, expected = compiled(*tensors), call(*tensors, lowering=lowering)
    torch.testing.assert_close(y, expected)
    ours = torch.autograd.grad(y.square().sum(), tensors)
    eager = torch.autograd.grad(expected.square().sum(), tensors)
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dynamic_filter", "afno"])
def test_the_other_operations_export_without_complex_numbers(normal, name):
    call, tensors = other_operations(normal)[name]

    class Module(torch.nn.Module):
        def forward(self, *t):
            return call(*t)

    program = torch.export.export(Module(), tensors)
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert not [v for v in values if isinstance(v, torch.Tensor) and v.is_complex()]
    assert not [node for node in program.graph.nodes if "freqformer" in str(node.target)]
    torch.testing.assert_close(program.module()(*tensors), call(*tensors))


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["fft", "dft"])
def test_inductor_compiles_it_under_autocast(normal, filter_shape, lowering):
    x, weight = operands(normal, filter_shape)

    def filtered(x, weight):
        with torch.autocast("cpu", torch.bfloat16):
            return global_filter(torch.nn.functional.layer_norm(x, x.shape[-1:]), weight, lowering=lowering)

    torch.compiler.reset()
    compiled = torch.compile(filtered, fullgraph=True)
    y = compiled(x, weight)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, filtered(x, weight), rtol=2e-2, atol=2e-2)
    ours = torch.autograd.grad(y.float().square().sum(), (x, weight))
    eager = torch.autograd.grad(filtered(x, weight).float().square().sum(), (x, weight))
    for a, b in zip(ours, eager, strict=True):
        # Fused, sums round elsewhere: single elements that nearly cancel differ by more than their size.
        assert (a - b).norm() < 2e-2 * b.norm()


class Filtered(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x):
        return global_filter(x, self.weight)


def test_an_exported_graph_has_no_complex_number_and_no_operator_of_ours(normal):
    # Larger than the measured rule's grid: only exporting makes it choose the matrix products.
    x = normal(1, 40, 40, 2, dtype=torch.float32)
    module = Filtered(normal(40, 21, 2, 2, seed=1, dtype=torch.float32))
    program = torch.export.export(module, (x,))
    targets = [str(node.target) for node in program.graph.nodes]
    assert not [target for target in targets if "freqformer" in target or "fft" in target or "complex" in target]
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert not [v for v in values if isinstance(v, torch.Tensor) and v.is_complex()]
    torch.testing.assert_close(program.module()(x), global_filter(x, module.weight, lowering="fft"))


def test_exporting_first_leaves_no_imitations_behind(normal):
    """Constants made while exporting must be real: a second filter on the same grid, and later calls, use them."""
    x = normal(1, 37, 3, 2, dtype=torch.float32)
    first, second = (Filtered(normal(37, 2, 2, 2, seed=seed, dtype=torch.float32)) for seed in (1, 2))
    both = torch.nn.Sequential(first, second)
    program = torch.export.export(both, (x,))
    expected = global_filter(global_filter(x, first.weight, lowering="fft"), second.weight, lowering="fft")
    torch.testing.assert_close(program.module()(x), expected)
    torch.testing.assert_close(global_filter(x, first.weight, lowering="dft"), first(x))


def test_an_override_is_respected_in_a_compiled_graph(normal, filter_shape):
    x, weight = operands(normal, filter_shape)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    with use_lowering("fft"):
        torch.compile(lambda x, w: global_filter(x, w), fullgraph=True, backend=keep)(x, weight)
    assert any("global_filter_fft" in str(node.target) for node in graphs[0].graph.nodes)


def test_constants_are_made_on_the_inputs_device(normal):
    """Whatever the default device is."""
    x, weight = normal(1, 13, 7, 2, dtype=torch.float32), normal(13, 4, 2, 2, dtype=torch.float32)
    with torch.device("meta"):
        y = global_filter(x, weight, lowering="dft")
    torch.testing.assert_close(y, global_filter(x, weight, lowering="fft"))


def test_constants_made_in_inference_mode_serve_training_afterwards(normal):
    """The matrices are cached; made as inference tensors they could not be saved for a backward pass."""
    x, weight = normal(1, 11, 9, 2, dtype=torch.float32), normal(11, 5, 2, 2, dtype=torch.float32)
    with torch.inference_mode():
        global_filter(x, weight, lowering="dft")
    global_filter(x.requires_grad_(), weight, lowering="dft").sum().backward()
    assert x.grad is not None
