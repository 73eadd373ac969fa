"""Lowering ``triton``: a fused CUDA kernel reads ``x`` once, filters it and writes ``y`` once; the gradients likewise.

One program filters a block of BC channels of one image after another. With Cw - i Sw the transform along W, on
F = W//2+1 columns, and D = Ch - i Sh that along H,

    X_hat = D (x (Cw - i Sw)),    y = Re[m D* (X_hat K) (Cw + i Sw)^T],    m = 1 on self-conjugate columns, else 2,

everything is a small matrix product on tensor cores. The half-spectrum is never whole in registers: as in flash
attention a program walks over blocks of BF columns, and each adds its share to ``y``:

    T = x [Cw | -Sw]            rows (h, c), BC channels to a row of the image; columns (p, f), p real or imaginary
    A = D T                     the same numbers seen as (h | p, c, f): [Ch; Sh] T gives all four real products
    G = A K                     K: a weight, its conjugate, or a mixture of a bank's filters, made in registers
    y += (D* G) [m Cw; -m Sw]   back through the same two views

Sw is zero on self-conjugate columns, so the last product drops the imaginary part there: the inverse of the
definition. The gradient in ``x`` is the same kernel with the conjugate weight. That in a weight is

    dK = m sum over images of conj(X_hat) dY_hat,

summed in float32 by programs that own a block of channels, a block of columns and a share of the batch; the
shares are then added in a fixed order, so a result depends on nothing but its inputs and the chosen tile sizes.

Half inputs multiply in their own dtype and add in float32: about the error of one rounding of the result, also in the
gradient of a float32 weight. The constants are cosines and sines times powers of two, so they are exact where a
cosine is 1 and no rounding of 1/sqrt(W) scales the mean of an image; what is left of the ortho scaling multiplies the
weight in float32. In float16 a spectrum times its weight must stay below 65504: at 64 x 64, |mean * weight| below
1000. Float32 multiplies in float32.

Zeros fill what is missing up to tiles of powers of two; H and W go up to 64, and a sequence (H = 1) up to 1024.
"""

import itertools
import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .constants import plain_tensors
from .symbolic import column_counts, waves

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        "lowering 'triton' needs the triton package: pip install triton, or use lowering='fft'"
    ) from error

MAX_SIDE = 64
MAX_SEQUENCE = 1024

INTERPRETED = triton.knobs.runtime.interpret
_INTERPRETED = tl.constexpr(INTERPRETED)

# How float32 is multiplied: "ieee" on the ordinary units; "tf32x3" (tensor cores, three products) is a little coarser.
_FLOAT32 = "ieee"


# ---------------------------------------------------------------------------------------------- on the device
# HP, WP: H and W filled up to a tile. N: BC * BF, the columns of a block of the spectrum.


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    """The product, added in float32."""
    if _INTERPRETED:
        # Triton's interpreter would multiply the bits of bfloat16.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _rounded(value, dtype: tl.constexpr):
    """A float32 value in the dtype of the operands."""
    if _INTERPRETED and dtype == tl.bfloat16:
        # Triton's interpreter would cut the low bits off instead of rounding to nearest.
        bits = value.to(tl.int32, bitcast=True)
        value = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return value.to(dtype)


@triton.jit
def _tile(channel, channels, H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, BC: tl.constexpr):
    """Offsets in an image of the tile with rows (h, c) and columns w, and which of them exist."""
    row = tl.arange(0, HP * BC)
    h, c, w = row // BC, channel + row % BC, tl.arange(0, WP)
    offset = (h[:, None] * W + w[None, :]) * channels + c[:, None]
    return offset, ((h < H) & (c < channels))[:, None] & (w < W)[None, :]


@triton.jit
def _forward_w(waves, column, WP: tl.constexpr, FP: tl.constexpr, BF: tl.constexpr):
    """[Cw | -Sw] for a block of columns: (WP, 2 BF) out of (2, WP, FP)."""
    w, j = tl.arange(0, WP)[:, None], tl.arange(0, 2 * BF)[None, :]
    return tl.load(waves + ((j // BF) * WP + w) * FP + column + j % BF)


@triton.jit
def _back_w(waves, column, WP: tl.constexpr, FP: tl.constexpr, BF: tl.constexpr):
    """[m Cw; -m Sw] for a block of columns: (2 BF, WP) out of (2, FP, WP)."""
    j, w = tl.arange(0, 2 * BF)[:, None], tl.arange(0, WP)[None, :]
    return tl.load(waves + ((j // BF) * FP + column + j % BF) * WP + w)


@triton.jit
def _both_h(waves, HP: tl.constexpr):
    """[Ch; Sh], rows (k // 8, cosine or sine, k % 8): a thread of a tensor core then holds both products of a k."""
    row, h = tl.arange(0, 2 * HP)[:, None], tl.arange(0, HP)[None, :]
    return tl.load(waves + row * HP + h)


@triton.jit
def _along_h(re, im, both, SIGN: tl.constexpr, HP: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr):
    """(Ch - i SIGN Sh) (re + i im), of (HP, N) each."""
    if HP > 1:
        z = tl.reshape(tl.permute(_rounded(tl.join(re, im), both.dtype), (0, 2, 1)), (HP, 2 * N))
        z = _dot(both, z, PRECISION)
        z = tl.permute(tl.reshape(z, (HP // 8, 2, 8, 2, N)), (0, 2, 4, 3, 1))
        cos, sin = tl.split(tl.reshape(z, (HP, N, 2, 2)))
        cos_re, cos_im = tl.split(cos)
        sin_re, sin_im = tl.split(sin)
        re, im = cos_re + SIGN * sin_im, cos_im - SIGN * sin_re
    return re, im


@triton.jit
def _to_spectrum(x, forward, both, HP: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr, PRECISION: tl.constexpr):
    """A block of columns of the spectrum, real and imaginary (HP, BC * BF), of a tile (HP * BC, WP)."""
    z = _dot(x, forward, PRECISION)
    re, im = tl.split(tl.permute(tl.reshape(z, (HP, BC, 2, BF)), (0, 1, 3, 2)))
    return _along_h(tl.reshape(re, (HP, BC * BF)), tl.reshape(im, (HP, BC * BF)), both, 1, HP, BC * BF, PRECISION)


@triton.jit
def _add_signal(y, re, im, back, both, HP: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr, PRECISION: tl.constexpr):
    """``y`` (HP * BC, WP) plus the signal of a block of columns of a spectrum, (HP, BC * BF)."""
    re, im = _along_h(re, im, both, -1, HP, BC * BF, PRECISION)
    z = tl.permute(tl.reshape(_rounded(tl.join(re, im), back.dtype), (HP * BC, BF, 2)), (0, 2, 1))
    return y + _dot(tl.reshape(z, (HP * BC, 2 * BF)), back, PRECISION)


@triton.jit
def _block(channel, column, HP: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr):
    """Indices ky, c and f of a block of the spectrum seen as (HP, BC, BF)."""
    ky = tl.arange(0, HP)[:, None, None]
    return ky, channel + tl.arange(0, BC)[None, :, None], column + tl.arange(0, BF)[None, None, :]


@triton.jit
def _complex_load(at, inside, PARTS: tl.constexpr):
    re = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    im = tl.load(at + 1, mask=inside, other=0.0).to(tl.float32) if PARTS == 2 else tl.zeros_like(re)
    return re, im


@triton.jit
def _bank_filter(bank, k, ky, f, H: tl.constexpr, F: tl.constexpr, FILTERS: tl.constexpr):
    """Filter k of a bank (H, F, K, 2) on a block: (HP, 1, BF), the same for every channel."""
    return _complex_load(bank + ((ky * F + f) * FILTERS + k) * 2, (ky < H) & (f < F), 2)


@triton.jit
def _routed(routing, image, k, c, channels, FILTERS: tl.constexpr):
    """How much of filter k each channel takes: (1, BC, 1) of a routing (B, K, C)."""
    return tl.load(routing + (image * FILTERS + k) * channels + c, mask=c < channels, other=0.0).to(tl.float32)


@triton.jit
def _weight_block(
    weight, routing, image, channel, column, channels, scale,
    H: tl.constexpr, F: tl.constexpr, HP: tl.constexpr, PARTS: tl.constexpr, FILTERS: tl.constexpr,
    PER_SAMPLE: tl.constexpr, CONJUGATE: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """The filter on a block of the spectrum, (HP, BC * BF): of a weight, or mixed from a bank for this image."""
    ky, c, f = _block(channel, column, HP, BC, BF)
    if FILTERS == 0:
        at = weight + (image * (PER_SAMPLE * H * F) + ky * F + f) * channels * PARTS + c * PARTS
        re, im = _complex_load(at, (ky < H) & (c < channels) & (f < F), PARTS)
    else:
        re = tl.zeros((HP, BC, BF), tl.float32)
        im = tl.zeros((HP, BC, BF), tl.float32)
        for k in tl.static_range(FILTERS):
            routed = _routed(routing, image, k, c, channels, FILTERS)
            bank_re, bank_im = _bank_filter(weight, k, ky, f, H, F, FILTERS)
            re += routed * bank_re
            im += routed * bank_im
    sign = -scale if CONJUGATE else scale
    return tl.reshape(re * scale, (HP, BC * BF)), tl.reshape(im * sign, (HP, BC * BF))


@triton.jit
def _filter(
    x, weight, routing, y, forward, both, back, batch, channels, scale,
    H: tl.constexpr, W: tl.constexpr, F: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, FP: tl.constexpr,
    PARTS: tl.constexpr, FILTERS: tl.constexpr, PER_SAMPLE: tl.constexpr, CONJUGATE: tl.constexpr,
    PRECISION: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of channels, any): the second axis shares out the images."""
    # A filter that is the same for all images and fits into one block stays in registers.
    KEPT: tl.constexpr = FILTERS == 0 and not PER_SAMPLE and F <= BF
    channel = tl.program_id(0) * BC
    offset, inside = _tile(channel, channels, H, W, HP, WP, BC)
    both_h = _both_h(both, HP)
    if KEPT:
        weight_re, weight_im = _weight_block(
            weight, routing, 0, channel, 0, channels, scale, H, F, HP, PARTS, FILTERS, PER_SAMPLE, CONJUGATE, BC, BF
        )
    # Ahead of their turn only images are fetched, not a filter's single numbers.
    for image in tl.range(tl.program_id(1).to(tl.int64), batch, tl.num_programs(1), num_stages=2 if KEPT else 1):
        at = image * (H * W * channels) + offset
        tile = tl.load(x + at, mask=inside, other=0.0)
        out = tl.zeros((HP * BC, WP), tl.float32)
        for column in tl.range(0, F, BF, num_stages=1):
            re, im = _to_spectrum(tile, _forward_w(forward, column, WP, FP, BF), both_h, HP, BC, BF, PRECISION)
            if not KEPT:
                weight_re, weight_im = _weight_block(
                    weight, routing, image, channel, column, channels, scale,
                    H, F, HP, PARTS, FILTERS, PER_SAMPLE, CONJUGATE, BC, BF,
                )  # fmt: skip
            if PARTS == 2:
                re, im = re * weight_re - im * weight_im, re * weight_im + im * weight_re
            else:
                re, im = re * weight_re, im * weight_re
            out = _add_signal(out, re, im, _back_w(back, column, WP, FP, BF), both_h, HP, BC, BF, PRECISION)
        tl.store(y + at, _rounded(out, y.dtype.element_ty), mask=inside)


@triton.jit
def _gradient(
    x, dy, bank, routing, dweight, drouting, forward, both, batch, channels, scale,
    H: tl.constexpr, W: tl.constexpr, F: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, FP: tl.constexpr,
    PARTS: tl.constexpr, FILTERS: tl.constexpr, KP: tl.constexpr, PRECISION: tl.constexpr,
    BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of channels, blocks of columns, shares of the batch); a part of the sums for each program.

    Without a bank ``dweight`` is (shares, H, F, C, PARTS). With one it is (shares, blocks of channels, H, F, K, 2),
    and ``drouting`` (blocks of columns, B, K, C).
    """
    channel, column = tl.program_id(0) * BC, tl.program_id(1) * BF
    share, shares = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    offset, inside = _tile(channel, channels, H, W, HP, WP, BC)
    both_h = _both_h(both, HP)
    forward_w = _forward_w(forward, column, WP, FP, BF)
    ky, c, f = _block(channel, column, HP, BC, BF)
    # Column 0 and, for even W, the last one are their own mirror images.
    count = tl.where((f == 0) | (2 * f == W), scale, 2 * scale)
    if FILTERS == 0:
        sum_re = tl.zeros((HP, BC * BF), tl.float32)
        sum_im = tl.zeros((HP, BC * BF), tl.float32)
    else:
        filters = tl.arange(0, KP)[:, None, None]
        sum_re = tl.zeros((KP, HP, BF), tl.float32)
        sum_im = tl.zeros((KP, HP, BF), tl.float32)
    for image in range(share, batch, shares):
        at = image * (H * W * channels) + offset
        x_re, x_im = _to_spectrum(tl.load(x + at, mask=inside, other=0.0), forward_w, both_h, HP, BC, BF, PRECISION)
        y_re, y_im = _to_spectrum(tl.load(dy + at, mask=inside, other=0.0), forward_w, both_h, HP, BC, BF, PRECISION)
        re = x_re * y_re + x_im * y_im
        im = x_re * y_im - x_im * y_re
        if FILTERS == 0:
            sum_re += re
            sum_im += im
        else:
            re = tl.reshape(re, (HP, BC, BF)) * count
            im = tl.reshape(im, (HP, BC, BF)) * count
            for k in tl.static_range(FILTERS):
                bank_re, bank_im = _bank_filter(bank, k, ky, f, H, F, FILTERS)
                part = tl.sum(tl.sum(re * bank_re + im * bank_im, axis=2), axis=0)
                cs = channel + tl.arange(0, BC)
                at_routing = ((tl.program_id(1) * batch + image) * FILTERS + k) * channels + cs
                tl.store(drouting + at_routing, part, mask=cs < channels)
                routed = _routed(routing, image, k, c, channels, FILTERS)
                sum_re += tl.where(filters == k, tl.sum(routed * re, axis=1)[None, :, :], 0.0)
                sum_im += tl.where(filters == k, tl.sum(routed * im, axis=1)[None, :, :], 0.0)
    if FILTERS == 0:
        at_weight = dweight + ((share * H + ky) * F + f) * channels * PARTS + c * PARTS
        exists = (ky < H) & (c < channels) & (f < F)
        tl.store(at_weight, tl.reshape(sum_re, (HP, BC, BF)) * count, mask=exists)
        if PARTS == 2:
            tl.store(at_weight + 1, tl.reshape(sum_im, (HP, BC, BF)) * count, mask=exists)
    else:
        rows, columns = tl.arange(0, HP)[None, :, None], column + tl.arange(0, BF)[None, None, :]
        part = share * tl.num_programs(0) + tl.program_id(0)
        at_bank = dweight + (((part * H + rows) * F + columns) * FILTERS + filters) * 2
        exists = (rows < H) & (columns < F) & (filters < FILTERS)
        tl.store(at_bank, sum_re, mask=exists)
        tl.store(at_bank + 1, sum_im, mask=exists)


# ------------------------------------------------------------------------------------------------ on the host


def _suitable(kernel: str, height: int, width: int, itemsize: int) -> list[triton.Config]:
    """The tile sizes worth timing on a grid, widest blocks of channels first.

    They follow what the compiler for sm_90 was seen to need: a thread spills when it holds more float32 values at once
    than the limit, and shared memory holds the images, twice where the next is fetched ahead, and the waves along W.
    More warps than 16 rows each of the transform along H would repeat its work.
    """
    rows, columns, half = _padded_height(height), _padded(width), itemsize == 2
    all_warps = {1: (4, 8), 16: (4, 8), 32: (4,), 64: (8,)}[rows] if half else (8,)
    widest = max(8, triton.next_power_of_2(width // 2 + 1))
    blocks = [block for block in ((32, 16, 8) if half else (16, 8)) if block <= widest]
    images = 1 if kernel == "filter" else 2
    found = []
    for channels, block, warps in itertools.product((64, 32, 16, 8, 4, 2, 1), blocks, all_warps):
        tile = rows * channels * columns
        values = tile + images * 4 * rows * channels * block
        fetched, waves_w = images * tile * itemsize, 4 // images * columns * block * itemsize
        fits = values <= (192 if half else 48) * 32 * warps and fetched + waves_w <= 160 * 1024
        if fits and rows * channels >= (16 if half else 8):
            stages = 2 if 2 * fetched + waves_w <= 160 * 1024 else 1
            # Without a limit ptxas was seen to give some kernels 32 registers and to spill the rest.
            sizes = {"BC": channels, "BF": block}
            found.append(triton.Config(sizes, num_warps=warps, num_stages=stages, maxnreg=255))
    # Of narrow blocks of channels a bank's gradient has many partial sums.
    return [c for c in found if 4 // images * c.kwargs["BC"] >= found[0].kwargs["BC"]][:6]


_INTERPRETED_CONFIGS = [triton.Config({"BC": 16, "BF": 16}, num_warps=4)]


def _configs(kernel: str, height: int, width: int, itemsize: int) -> list[triton.Config]:
    return _INTERPRETED_CONFIGS if INTERPRETED else _suitable(kernel, height, width, itemsize)


def _tuned(function: Any, kernel: str, key: list[str], cleared: list[str]) -> Any:
    """The kernel with its tile sizes chosen by timing them, the first time that it meets a grid on a GPU."""

    def prune(configs: list[triton.Config], named: dict[str, Any], **sizes: Any) -> list[triton.Config]:
        return _suitable(kernel, sizes["H"], sizes["W"], named["x"].element_size())

    # With one configuration nothing is timed; with two the function above replaces them.
    configs = _INTERPRETED_CONFIGS * (1 if INTERPRETED else 2)
    return triton.autotune(configs, key, {"early_config_prune": prune}, cleared, cache_results=True)(function)


_filter_tuned = _tuned(_filter, "filter", ["channels", "H", "W", "PARTS", "FILTERS", "PER_SAMPLE"], [])
# A configuration need not write all of these sums; what others that were timed wrote must not stay there.
_gradient_tuned = _tuned(_gradient, "gradient", ["channels", "H", "W", "PARTS", "FILTERS"], ["dweight", "drouting"])


def global_filter(x: Tensor, weight: Tensor, conjugate: bool = False) -> Tensor:
    """Filter ``x`` (B, H, W, C) by ``weight`` or its conjugate; returns x's shape and dtype, contiguous."""
    parts = 1 if weight.ndim == 3 else 2
    conjugate = conjugate and parts == 2
    return _filtered(x, weight, weight, conjugate, PARTS=parts, FILTERS=0, PER_SAMPLE=int(weight.ndim == 5))


def dynamic_filter(x: Tensor, bank: Tensor, routing: Tensor, conjugate: bool = False) -> Tensor:
    """Filter ``x`` (B, H, W, C) by each sample's mixture of a bank (H, F, K, 2), or the mixture's conjugate."""
    if bank.numel() == 0:
        return torch.zeros_like(x, memory_format=torch.contiguous_format)
    return _filtered(x, bank, routing, conjugate, PARTS=2, FILTERS=bank.shape[2], PER_SAMPLE=0)


def weight_gradient(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
    """Gradient of ``sum(dy * global_filter(x, weight))`` in the weight, in its shape and dtype."""
    _require(x)
    if x.numel() == 0:
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    shares = x.shape[0] if weight.ndim == 5 else _shares(x)
    parts = 1 if weight.ndim == 3 else 2
    sums = x.new_empty(shares, *weight.shape[-4 if parts == 2 else -3 :], dtype=torch.float32)
    _sum_gradients(x, dy, weight, weight, sums, sums, shares, PARTS=parts, FILTERS=0)
    return (sums if weight.ndim == 5 else sums.sum(0)).to(weight.dtype)


def dynamic_gradients(x: Tensor, dy: Tensor, bank: Tensor, routing: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``sum(dy * dynamic_filter(x, bank, routing))`` in bank and routing, in their shapes and dtypes."""
    _require(x)
    if x.numel() == 0 or routing.numel() == 0:
        contiguous = torch.contiguous_format
        return torch.zeros_like(bank, memory_format=contiguous), torch.zeros_like(routing, memory_format=contiguous)
    configs = _configs("gradient", x.shape[1], x.shape[2], x.element_size())
    channel_blocks = triton.cdiv(x.shape[3], min(config.kwargs["BC"] for config in configs))
    column_blocks = triton.cdiv(bank.shape[1], min(config.kwargs["BF"] for config in configs))
    shares = _shares(x)
    # Wider blocks than these are fewer: they leave zeros.
    bank_sums = x.new_zeros(shares * channel_blocks, *bank.shape, dtype=torch.float32)
    routing_sums = x.new_zeros(column_blocks, *routing.shape, dtype=torch.float32)
    _sum_gradients(x, dy, bank, routing, bank_sums, routing_sums, shares, PARTS=2, FILTERS=bank.shape[2])
    return bank_sums.sum(0).to(bank.dtype), routing_sums.sum(0).to(routing.dtype)


def _filtered(x: Tensor, weight: Tensor, routing: Tensor, conjugate: bool, **kind: int) -> Tensor:
    _require(x)
    x, weight, routing = x.contiguous(), weight.contiguous(), routing.contiguous()
    y = torch.empty_like(x)
    batch, height, width, channels = x.shape
    if x.numel() == 0:
        return y
    forward, both, back, scale = _constants(height, width, x.dtype, x.device)

    def grid(config: dict[str, int]) -> tuple[int, int]:
        blocks = triton.cdiv(channels, config["BC"])
        return blocks, min(batch, triton.cdiv(_programs(x), blocks))

    arguments = (x, weight, routing, y, forward, both, back, batch, channels, scale)
    with torch.cuda.device_of(x):
        _filter_tuned[grid](*arguments, CONJUGATE=int(conjugate), **_sizes(height, width, x.dtype), **kind)
    return y


def _sum_gradients(
    x: Tensor, dy: Tensor, bank: Tensor, routing: Tensor, sums: Tensor, routing_sums: Tensor, shares: int, **kind: int
) -> None:
    x, dy, bank, routing = x.contiguous(), dy.contiguous(), bank.contiguous(), routing.contiguous()
    batch, height, width, channels = x.shape
    forward, both, _, scale = _constants(height, width, x.dtype, x.device)

    def grid(config: dict[str, int]) -> tuple[int, int, int]:
        return triton.cdiv(channels, config["BC"]), triton.cdiv(width // 2 + 1, config["BF"]), shares

    arguments = (x, dy, bank, routing, sums, routing_sums, forward, both, batch, channels, scale)
    padded = triton.next_power_of_2(max(kind["FILTERS"], 1))
    with torch.cuda.device_of(x):
        _gradient_tuned[grid](*arguments, KP=padded, **_sizes(height, width, x.dtype), **kind)


def _shares(x: Tensor) -> int:
    """Into how many parts the batch is cut: enough to fill the device, of at least four images each."""
    batch, height, width, channels = x.shape
    blocks = triton.cdiv(channels, 256 // max(16, _padded_height(height))) * triton.cdiv(width // 2 + 1, 16)
    return min(triton.cdiv(batch, 4), triton.cdiv(_programs(x), blocks))


def _programs(x: Tensor) -> int:
    """How many programs keep the device busy."""
    return 4 * torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 4


def _require(x: Tensor) -> None:
    """Raise TypeError for float64, and ValueError where the kernels do not run or for too large a grid."""
    if x.dtype == torch.float64:
        raise TypeError("lowering 'triton' has no float64: use lowering='fft', or x in float32 or half precision")
    if not (x.is_cuda or INTERPRETED):
        raise ValueError(f"lowering 'triton' needs a GPU and x is on {x.device}: move it, or use lowering='dft'")
    height, width = x.shape[1:3]
    if max(height, width) > MAX_SIDE and not (height == 1 and width <= MAX_SEQUENCE):
        raise ValueError(
            f"lowering 'triton' takes grids up to {MAX_SIDE}x{MAX_SIDE} and 1x{MAX_SEQUENCE}, not {height}x{width}: "
            "use lowering='fft'"
        )


def _sizes(height: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """The constants of every kernel on a grid."""
    return {
        **{"H": height, "W": width, "F": width // 2 + 1},
        **{"HP": _padded_height(height), "WP": _padded(width), "FP": _padded_columns(width)},
        "PRECISION": _FLOAT32 if dtype == torch.float32 else "tf32",
    }


def _padded(length: int) -> int:
    return max(16, triton.next_power_of_2(length))


def _padded_height(height: int) -> int:
    return 1 if height == 1 else _padded(height)


def _padded_columns(width: int) -> int:
    return 32 * triton.cdiv(width // 2 + 1, 32)


@lru_cache(maxsize=64)
def _constants(
    height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, float]:
    """What the kernels read as ``forward``, ``both`` and ``back``, and the scale that makes them ortho."""
    with plain_tensors():
        columns, rows = _padded_columns(width), _padded_height(height)
        power_w, power_h = (2.0 ** -round(math.log2(side) / 2) for side in (width, height))
        cpu = torch.device("cpu")
        cos, sin = (power_w * wave for wave in waves(width // 2 + 1, width, cpu))
        count = column_counts(width, cpu)[:, None]
        forward = _filled(torch.stack([cos.T, -sin.T]), _padded(width), columns)
        back = _filled(torch.stack([count * cos, -count * sin]), columns, _padded(width))
        both = _filled(power_h * torch.stack(waves(height, height, cpu)), rows, rows)
        both = both.reshape(2, -1, min(rows, 8), rows).transpose(0, 1)
        forward, both, back = (matrix.to(device, dtype).contiguous() for matrix in (forward, both, back))
        return forward, both, back, 1 / (height * width * power_h**2 * power_w**2)


def _filled(matrices: Tensor, rows: int, columns: int) -> Tensor:
    """The matrices with zeros up to (..., rows, columns)."""
    return torch.nn.functional.pad(matrices, (0, columns - matrices.shape[-1], 0, rows - matrices.shape[-2]))
