"""Compiled models: the same answers, one graph for any batch."""

import pytest
import torch
from torch._dynamo.utils import counters

from freqformer import compile_for_inference, create_model
from freqformer.compiling import compile_for_training

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def make(name, **arguments):
    torch.manual_seed(0)
    model = create_model(name, num_classes=7, **arguments)
    for key, parameter in model.named_parameters():
        # Filters start so small that a wrong one would hardly show.
        if key.endswith("complex_weight"):
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize(("name", "dtype"), [("test_spectformer", torch.float32), ("test_dfformer", torch.bfloat16)])
def test_it_answers_as_the_model_does_in_one_graph_for_any_batch(name, dtype):
    model = make(name).eval().to(dtype)
    compiled = compile_for_inference(model)
    precision = torch.get_float32_matmul_precision()
    for batch in (4, 2, 7):
        images = torch.randn(batch, 3, 32, 32).to(dtype)
        y = compiled(images)
        assert not y.requires_grad
        with torch.no_grad():
            expected = model(images)
        assert (y - expected).norm() < (3e-2 if dtype == torch.bfloat16 else 1e-5) * expected.norm()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert torch.get_float32_matmul_precision() == precision
    compiled(torch.randn(1, 3, 32, 32).to(dtype))
    assert counters["stats"]["unique_graphs"] == 2


def test_training_gives_the_same_gradients(monkeypatch):
    import torch._functorch.config

    # The setting outlives the call: put it back.
    monkeypatch.setattr(
        torch._functorch.config, "activation_memory_budget", torch._functorch.config.activation_memory_budget
    )
    eager, compiled = make("test_dfformer"), make("test_dfformer")
    compile_for_training(compiled)
    images = torch.randn(4, 3, 32, 32)
    for model in (eager, compiled):
        model(images).square().sum().backward()
    for one, other in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
