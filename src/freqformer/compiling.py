"""How torch.compile serves these models best: settings found by measuring (docs/performance.md)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Share of the activations that a compiled training step may keep: the rest, such as GELU's output, is computed
# twice. Of the budgets tried on GFNet-XS it frees most of what can be had at no measurable time.
_ACTIVATION_BUDGET = 0.8


def compile_for_inference(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Compile a model for inference; on a CPU its weights become constants, packed for the matrix products.

    The first call compiles, for tens of seconds. One graph serves all batches of more than one image; a single image
    and another image size get graphs of their own. Later changes of the weights are not seen. Give the model the
    dtype to compute in first: ``model.to(torch.bfloat16)``.

    On a CPU float32 products go to oneDNN rather than to MKL, which does not use AVX-512 on processors of other makers
    (2.2 times as fast on an AMD EPYC). oneDNN computes them in float32, except on processors that have TF32 units.

    Args:
        model: any model; it is set to evaluation mode.

    Returns:
        A function from images (B, C, H, W) to what the model's forward returns.
    """
    # Compilers are imported when something is compiled.
    import torch._inductor.config

    compiled = torch.compile(model.eval())
    if next(model.parameters()).device.type != "cpu":
        return torch.no_grad()(compiled)

    def run(images: Tensor) -> Tensor:
        # torch.compile's options come too late for freezing: tracing asks for it already.
        with torch.no_grad(), _onednn(), torch._inductor.config.patch(freezing=True):
            if images.shape[0] > 1:
                torch._dynamo.maybe_mark_dynamic(images, 0)
            return compiled(images)

    return run


def compile_for_training(model: nn.Module) -> None:
    """Compile a model in place for training, with less memory: cheap activations are computed again when needed.

    The budget is a setting of the whole process.
    """
    import torch._functorch.config

    torch._functorch.config.activation_memory_budget = _ACTIVATION_BUDGET
    model.compile()


@contextmanager
def _onednn() -> Iterator[None]:
    # The only public switch that makes a compiled graph take oneDNN's float32 products.
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous)
