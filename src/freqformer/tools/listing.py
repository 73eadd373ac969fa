"""The table of models: what each costs."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..factory import create_model
from ..layers import GlobalFilter
from ..models import model_names
from ..ops import use_lowering


@dataclass(frozen=True)
class ModelRow:
    """What one model costs for one image of its native size."""

    name: str
    parameters: int
    gmacs: float
    """Multiply-adds / 1e9 of convolutions and matrix products alone, as the papers' tables count them."""
    spectral_gmacs: float
    """Multiply-adds / 1e9 of the filters beside it: an estimate for fast Fourier transforms."""
    input_size: tuple[int, int]


def list_models(pattern: str = "*") -> list[ModelRow]:
    """Count parameters and multiply-adds of the models whose names match a shell pattern.

    Nothing is allocated: the models are built and run on the meta device.
    """
    return [_row(name) for name in model_names(pattern)]


def _row(name: str) -> ModelRow:
    with torch.device("meta"):
        model = create_model(name).eval()
        images = torch.empty(1, *model.pretrained_cfg["input_size"])
    # The fft lowering is one operator, whose inside is not counted as matrix products.
    with use_lowering("fft"), FlopCounterMode(display=False) as counter:
        model(images)
    return ModelRow(
        name=name,
        parameters=sum(p.numel() for p in model.parameters()),
        gmacs=counter.get_total_flops() / 2e9,
        spectral_gmacs=sum(_filter_macs(m) for m in model.modules() if isinstance(m, GlobalFilter)) / 1e9,
        input_size=tuple(images.shape[-2:]),  # type: ignore[arg-type]
    )


def _filter_macs(mixer: GlobalFilter) -> float:
    """Two real transforms of 2.5 N log2 N operations each, at two an FMA, and 4 products a complex bin."""
    height, width = mixer.grid
    tokens = height * width
    channels = mixer.complex_weight.shape[2]
    transforms = 2 * 2.5 * tokens * max(tokens.bit_length() - 1, 1) / 2
    return channels * (transforms + 4 * height * (width // 2 + 1))
