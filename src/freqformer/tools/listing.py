"""The table of models: what each costs, beside what its authors print."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..factory import create_model
from ..models import model_names, published
from ..ops import use_lowering


@dataclass(frozen=True)
class ModelRow:
    """What one model costs for one image of its native size."""

    name: str
    parameters: int
    gmacs: float
    """Multiply-adds / 1e9 of convolutions and matrix products alone, as the papers' tables count them."""
    spectral_gmacs: float
    """Multiply-adds / 1e9 of transforms and filters beside it: an estimate for fast Fourier transforms."""
    input_size: tuple[int, int]
    published_parameters: str | None
    """As printed; None where the authors print nothing."""
    published_flops: str | None
    published_top1: float | None
    """ImageNet-1K top-1 in percent, as printed."""


def list_models(pattern: str = "*", **arguments: Any) -> list[ModelRow]:
    """Count parameters and multiply-adds of the models whose names match a shell pattern.

    Nothing is allocated: the models are built and run on the meta device.

    Args:
        pattern: names, such as ``"gfnet*"``.
        **arguments: the models' own keywords.

    Returns:
        A row for each model.
    """
    return [_row(name, arguments) for name in model_names(pattern)]


def _row(name: str, arguments: dict[str, Any]) -> ModelRow:
    with torch.device("meta"):
        model = create_model(name, **arguments).eval()
        images = torch.empty(1, *model.pretrained_cfg["input_size"])
    spectral: list[float] = []
    # In the fft lowering transforms are operators, which these formulas count in a column of their own.
    with use_lowering("fft"), FlopCounterMode(display=False, custom_mapping=_formulas(spectral)) as counter:
        model(images)
    printed = published(name)
    return ModelRow(
        name=name,
        parameters=sum(p.numel() for p in model.parameters()),
        gmacs=counter.get_total_flops() / 2e9,
        spectral_gmacs=sum(spectral) / 1e9,
        input_size=tuple(images.shape[-2:]),  # type: ignore[arg-type]
        published_parameters=printed.parameters if printed else None,
        published_flops=printed.flops if printed else None,
        published_top1=printed.top1 if printed else None,
    )


def _formulas(spectral: list[float]) -> dict[Any, Any]:
    """What the operators add to the floating-point operations; their transforms' multiply-adds go to ``spectral``."""
    ops = torch.ops.freqformer

    def filter_(x: torch.Size, *args: Any, **kwargs: Any) -> int:
        # Two transforms, and a complex product of four a bin.
        spectral.append(2 * _transform_macs(x) + 4 * _bins(x))
        return 0

    def dynamic(x: torch.Size, bank: torch.Size, *args: Any, **kwargs: Any) -> int:
        filter_(x)
        # As in the official counts, a complex product is counted like a real one.
        return 2 * _bins(x) * bank[2]

    def transform(x: torch.Size, *args: Any, **kwargs: Any) -> int:
        spectral.append(_transform_macs(x))
        return 0

    def inverse(spectrum: torch.Size, width: int, *args: Any, **kwargs: Any) -> int:
        batch, height, _, channels, _ = spectrum
        spectral.append(_transform_macs((batch, height, width, channels)))
        return 0

    return {
        ops.global_filter_fft: filter_,
        ops.dynamic_filter_fft: dynamic,
        ops.rfft2: transform,
        ops.irfft2: inverse,
    }


def _bins(x: Any) -> int:
    batch, height, width, channels = x
    return batch * height * (width // 2 + 1) * channels


def _transform_macs(x: Any) -> float:
    """A real transform takes 2.5 N log2 N operations a channel, two a multiply-add."""
    tokens = x[1] * x[2]
    return x[0] * x[3] * 2.5 * tokens * max(tokens.bit_length() - 1, 1) / 2
