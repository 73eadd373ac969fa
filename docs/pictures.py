"""The pictures of maths.md: `python docs/pictures.py` writes them into docs/pictures in seconds."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from freqformer.ops import crop_pad_filter, global_filter, stretch_filter

FOLDER = Path(__file__).parent / "pictures"
SIDE = 14


def response(weight: Tensor, width: int) -> Tensor:
    """What a filter (H, F, 1, 2) makes of a single bright token: (H, W), its origin in the middle."""
    height = weight.shape[0]
    impulse = torch.zeros(1, height, width, 1, dtype=weight.dtype)
    impulse[0, 0, 0] = 1
    answer = global_filter(impulse, weight)[0, ..., 0]
    return answer.roll((height // 2, width // 2), (0, 1))


def spectrum(weight: Tensor, width: int) -> Tensor:
    """The full spectrum (H, W) of what a filter does, its mean in the middle."""
    answer = response(weight, width)
    height = answer.shape[0]
    return torch.fft.fftshift(torch.fft.fft2(answer.roll((-(height // 2), -(width // 2)), (0, 1))))


def filter_of(answer: Tensor) -> Tensor:
    """The filter (H, F, 1, 2) whose impulse response, its origin at (0, 0), is given."""
    return torch.view_as_real(torch.fft.rfft2(answer)).unsqueeze(2).contiguous()


def ripple(side: int) -> Tensor:
    """A wave of four tokens under a bell: an oriented band-pass filter's impulse response."""
    shift = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    y, x = torch.meshgrid(shift, shift, indexing="ij")
    wave = torch.cos(2 * math.pi * (0.9 * x + 0.44 * y) / 4) * torch.exp(-(x**2 + y**2) / 8)
    return wave / wave.abs().sum()


def show(axes: Axes, values: Tensor, title: str, *, signed: bool = False) -> None:
    """Draw a grid of numbers; signed ones with white for zero."""
    limit = float(values.abs().max())
    colours = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if signed else {"cmap": "magma", "vmin": 0}
    image = axes.imshow(values.numpy(), **colours)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    bar = plt.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.ax.tick_params(labelsize=7)


def save(figure: plt.Figure, name: str) -> None:
    """Write a picture."""
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / name, dpi=110)
    plt.close(figure)


def draw_filter() -> None:
    """One filter in its three forms."""
    weight = filter_of(ripple(SIDE))
    figure, axes = plt.subplots(1, 3, figsize=(8.5, 2.9), layout="constrained")
    half = torch.view_as_complex(weight)[..., 0]
    show(axes[0], half.abs(), "the weight as stored, magnitude\n14 rows (ky = 0..13), 8 columns (kx = 0..7)")
    show(axes[1], spectrum(weight, SIDE).abs(), "the full spectrum\nthe mean in the middle")
    show(axes[2], response(weight, SIDE), "the impulse response\nshift 0 in the middle", signed=True)
    save(figure, "maths-filter.png")


def draw_symmetry() -> None:
    """A random weight on its self-conjugate columns, as stored and as it acts."""
    weight = torch.randn(SIDE, SIDE // 2 + 1, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stored = torch.view_as_complex(weight)[..., 0]
    acting = torch.fft.fft2(response(weight, SIDE).roll((-7, -7), (0, 1)))[:, : SIDE // 2 + 1]
    figure, axes = plt.subplots(1, 3, figsize=(8.5, 3.6), layout="constrained")
    show(axes[0], stored.imag, "imaginary part as stored", signed=True)
    show(axes[1], acting.imag, "as it acts: columns 0 and 7\nare odd in ky now", signed=True)
    show(axes[2], (stored - acting).abs(), "what has no effect, magnitude")
    for one in axes:
        one.set_xticks(range(SIDE // 2 + 1))
        one.set_xlabel("kx", fontsize=8)
        one.set_ylabel("ky", fontsize=8)
        one.tick_params(labelsize=7)
    save(figure, "maths-symmetry.png")


def draw_resampling() -> None:
    """A filter of a 14x14 grid on a grid of 28x28."""
    weight = filter_of(ripple(SIDE))
    double = (2 * SIDE, 2 * SIDE)
    fitted = {
        "native, 14x14": (weight, SIDE),
        "crop-pad to 28x28": (crop_pad_filter(weight, (SIDE, SIDE), double), 2 * SIDE),
        "stretch to 28x28": (stretch_filter(weight, double), 2 * SIDE),
    }
    figure, axes = plt.subplots(2, 3, figsize=(8.5, 5.2), layout="constrained")
    for column, (name, (one, width)) in zip(axes.T, fitted.items(), strict=True):
        show(column[0], spectrum(one, width).abs(), f"{name}\nspectrum")
        show(column[1], response(one, width), "impulse response", signed=True)
    save(figure, "maths-resampling.png")


if __name__ == "__main__":
    draw_filter()
    draw_symmetry()
    draw_resampling()
