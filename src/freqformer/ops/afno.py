"""The adaptive Fourier neural operator: a small perceptron on every bin of the spectrum.

Guibas et al., "Adaptive Fourier Neural Operators: Efficient Token Mixers for Transformers", ICLR 2022. Its output
is no real signal's spectrum; as in ``global_filter``, the part that breaks the symmetry on the self-conjugate
columns is dropped. The perceptron is not linear, so that is done to its output, not to its weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from . import dft, fft, reference
from .checks import require_grid, require_same_device
from .lowering import choose_lowering
from .precision import autocast_input, compute_dtype, without_autocast


def afno(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    threshold: float = 0.01,
    lowering: str | None = None,
) -> Tensor:
    """Mix the channels of each spectral bin by a block-diagonal complex perceptron with soft shrinkage.

    The channels are K blocks of S; the first layer has a ReLU on the real and on the imaginary part. Under
    autocast it computes in, and returns, the autocast dtype; the parameters stay as they are.

    Args:
        x: real tensor (B, H, W, C), channels last; float64, float32, bfloat16 or float16.
        w1: first layer, real and imaginary part, (2, K, S, T).
        b1: its bias, (2, K, T).
        w2: second layer, (2, K, T, S).
        b2: its bias, (2, K, S).
        threshold: by how much real and imaginary parts shrink towards zero.
        lowering: ``"reference"``, ``"fft"`` or ``"dft"``; chosen by measured rules when None. There is no
            ``"triton"``.

    Returns:
        Tensor of the shape and dtype of ``x``.

    Raises:
        TypeError: an argument is not real floating point.
        ValueError: wrong rank or shapes, a negative threshold, different devices, or a lowering that does not
            exist here.
    """
    require_grid(x)
    _check(x, w1, b1, w2, b2, threshold)
    x = autocast_input(x)
    name = choose_lowering(x, lowering)
    if name == "triton":
        raise ValueError("afno has no lowering 'triton': call it with lowering='fft', or use_lowering('fft') around it")
    if name == "reference":
        return reference.afno(x, w1, b1, w2, b2, threshold)
    dtype = compute_dtype(x)
    weights = [weight.to(dtype) for weight in (w1, b1, w2, b2)]
    width = x.shape[2]
    with without_autocast(x):
        if name == "fft":
            output = _perceptron(_transform(x.to(dtype)), -1, weights, threshold)
            return _inverse(output, width).to(x.dtype)
        output = _perceptron(dft.transform(x.to(dtype)), 2, weights, threshold)
        return dft.inverse(output, width).to(x.dtype)


def _check(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, threshold: float) -> None:
    weights = {"w1": w1, "b1": b1, "w2": w2, "b2": b2}
    for name, value in weights.items():
        if not value.is_floating_point():
            raise TypeError(f"{name} must be real floating point, not {value.dtype}; keep both parts on its first axis")
    if threshold < 0:
        raise ValueError(f"threshold must be 0 or more, got {threshold}")
    if w1.ndim != 4:
        raise ValueError(f"w1 must be (2, K, S, T), got shape {tuple(w1.shape)}")
    _, blocks, size, hidden = w1.shape
    if w1.shape[0] != 2 or blocks * size != x.shape[3]:
        raise ValueError(
            f"w1 of shape {tuple(w1.shape)} does not fit x of shape {tuple(x.shape)}: it must be (2, K, S, T) with "
            f"K * S = {x.shape[3]} channels"
        )
    expected = {"b1": (2, blocks, hidden), "w2": (2, blocks, hidden, size), "b2": (2, blocks, size)}
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(
                f"{name} of shape {tuple(weights[name].shape)} does not fit w1 of shape {tuple(w1.shape)}, "
                f"which needs {shape}"
            )
    require_same_device(x, **weights)


def _perceptron(spectrum: Tensor, parts: int, weights: list[Tensor], threshold: float) -> Tensor:
    """Both layers on a spectrum whose axis ``parts`` holds real and imaginary part, the channels last beside it.

    A complex product is one real product of twice the size.
    """
    w1, b1, w2, b2 = weights
    blocks = w1.shape[1]
    real, imag = spectrum.unbind(parts)
    value = torch.cat([real.unflatten(-1, (blocks, -1)), imag.unflatten(-1, (blocks, -1))], dim=-1)
    hidden = F.relu(torch.einsum("...ki,kio->...ko", value, _real_matrix(w1)) + torch.cat([*b1], dim=-1))
    value = torch.einsum("...ki,kio->...ko", hidden, _real_matrix(w2)) + torch.cat([*b2], dim=-1)
    real, imag = F.softshrink(value, threshold).chunk(2, dim=-1)
    return torch.stack([real.flatten(-2), imag.flatten(-2)], dim=parts)


def _real_matrix(weight: Tensor) -> Tensor:
    """Complex matrices (2, K, I, O) as real ones (K, 2I, 2O) on rows of real, then imaginary parts."""
    real, imag = weight
    return torch.cat([torch.cat([real, imag], dim=-1), torch.cat([-imag, real], dim=-1)], dim=-2)


# The transforms as operators on real views, so that complex numbers never reach a compiler.


def _spectrum_like(x: Tensor) -> Tensor:
    batch, height, width, channels = x.shape
    return x.new_empty(batch, height, width // 2 + 1, channels, 2)


def _signal_like(spectrum: Tensor, width: int) -> Tensor:
    batch, height, _, channels, _ = spectrum.shape
    return spectrum.new_empty(batch, height, width, channels)


_transform = torch.library.custom_op("freqformer::rfft2", fft.transform, mutates_args=())
_transform_adjoint = torch.library.custom_op("freqformer::rfft2_adjoint", fft.transform_adjoint, mutates_args=())
_inverse = torch.library.custom_op("freqformer::irfft2", fft.inverse, mutates_args=())
_inverse_adjoint = torch.library.custom_op("freqformer::irfft2_adjoint", fft.inverse_adjoint, mutates_args=())

_transform.register_fake(_spectrum_like)
_inverse_adjoint.register_fake(_spectrum_like)
_inverse.register_fake(_signal_like)
_transform_adjoint.register_fake(_signal_like)


def _keep_width(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.width = inputs[0].shape[2]  # type: ignore[attr-defined]


_transform.register_autograd(lambda ctx, gradient: _transform_adjoint(gradient, ctx.width), setup_context=_keep_width)
_inverse.register_autograd(lambda ctx, dy: (_inverse_adjoint(dy), None))
