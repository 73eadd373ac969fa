"""Weights into a model: official names translated, tensors fitted to its grid, every key accounted for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn

from ..checkpoints import read_weights, unwrap
from ..errors import FreqFormerError
from ..ops import fit_filter, stretch_position
from .backbone import SpectralNet
from .official import layout_of, to_canonical


@dataclass
class LoadReport:
    """What `load_checkpoint` did: every key of the file and of the model is accounted for."""

    mapped: dict[str, str] = field(default_factory=dict)
    """Official key to ours, where they differ."""
    resampled: list[str] = field(default_factory=list)
    """Filters and position embeddings fitted to the model's grid."""
    adapted: list[str] = field(default_factory=list)
    """First convolutions fitted to another number of image channels, as timm does it."""
    left_out: list[str] = field(default_factory=list)
    """The file's classifier, where the model has none or one for another number of classes."""
    missing: list[str] = field(default_factory=list)
    """The model's tensors that the file does not have and need not: a fresh classifier, norms of features."""
    unexpected: list[str] = field(default_factory=list)
    """The file's tensors that the model has no place for and does not need: norms of features, pruned parts."""

    def __str__(self) -> str:
        parts = []
        if self.mapped:
            parts.append(f"{len(self.mapped)} keys mapped from the official layout")
        if self.resampled:
            parts.append(f"{len(self.resampled)} tensors resampled to the model's grid")
        for what, keys in {
            "adapted to the model's image channels": self.adapted,
            "left out, the classifier's": self.left_out,
            "not in the file, left fresh": self.missing,
            "not used by the model": self.unexpected,
        }.items():
            if keys:
                parts.append(f"{what}: {_some(keys)}")
        return "; ".join(parts) or "loaded as it is"


def load_checkpoint(model: nn.Module, source: str | Path | Mapping[str, Any]) -> LoadReport:
    """Load weights of this package or of the official codes into a model, fitted to its grid.

    Args:
        model: a model of this package, also as timm's feature extractor.
        source: a weight file (``.pth``, ``.pt``, ``.ckpt``, ``.safetensors``), a run's or timm's folder, a name
            ``hf-hub:USER/MODEL`` or ``local-dir:FOLDER``, or a state dict (with or without the wrappers that
            training scripts put around it).

    Returns:
        What was mapped, resampled, left out, missing and unexpected.

    Raises:
        FreqFormerError: an unreadable file, or keys or shapes that nothing explains.
    """
    where = str(source) if isinstance(source, (str, Path)) else "the state dict"
    official = unwrap(source) if isinstance(source, Mapping) else read_weights(source)
    state, mapped = to_canonical(official, where)
    report = LoadReport(mapped=mapped)
    net = model if isinstance(model, SpectralNet) else model.get_submodule("model")
    if not isinstance(net, SpectralNet):
        raise FreqFormerError(f"{type(model).__name__} is no model of this package")

    own = net.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    if not any(key.startswith("head.") for key in state):
        report.missing += [key for key in missing if key.startswith(("head.", "token_head."))]
    report.missing += [key for key in missing if key.startswith("out_norms.")]
    if net.out_norms is not None:
        # A dense task's model and its file need no norm and no classifier for the image as a whole.
        report.missing += [key for key in missing if key.startswith(("norm.", "pool."))]
    spare = tuple(f"{name}." for name in _spare_modules(net))
    spared = [key for key in unexpected if key.startswith(spare)]
    report.left_out += [key for key in spared if key.startswith(("head.", "token_head."))]
    report.unexpected = [key for key in spared if key not in report.left_out]

    misfits = []
    for key in [key for key in own if key in state]:
        value = state[key] = state[key].to(own[key].dtype)
        shape = tuple(own[key].shape)
        if value.shape == own[key].shape:
            continue
        if _is_resampled(key, value, shape):
            state[key] = _resampled(net, key, value, shape)
            report.resampled.append(key)
        elif key in _tensors_of(net, "first_conv") and value.shape[2:] == shape[2:] and value.shape[0] == shape[0]:
            state[key] = adapt_input_conv(shape[1], value)
            report.adapted.append(key)
        elif key in _tensors_of(net, "classifier"):
            report.left_out.append(key)
        else:
            misfits.append(f"{key} {tuple(value.shape)} for {shape}")
    problems = [
        f"{what}: {_some(keys)}"
        for what, keys in (
            ("missing", [key for key in missing if key not in report.missing]),
            ("unexpected", [key for key in unexpected if key not in spared]),
            ("of another shape", misfits),
        )
        if keys
    ]
    if problems:
        layout = layout_of(official)
        kind = f" (it holds {layout.name})" if layout else ""
        name = net.pretrained_cfg["architecture"]
        raise FreqFormerError(f"{where}{kind} does not fit {name}: {'; '.join(problems)}")
    report.resampled.sort()
    report.left_out.sort()
    keep = {key: own[key] if key in (*report.left_out, *report.missing) else state[key] for key in own}
    net.load_state_dict(keep)
    return report


def native_grid(height: int, columns: int) -> tuple[int, int]:
    """The (H, W) of a filter's half-spectrum of H rows and F columns: a square grid where F allows one.

    F does not tell an even width from the odd one after it; filters of the model's own shape are never touched.
    """
    return height, height if height // 2 + 1 == columns else 2 * (columns - 1)


def _is_resampled(key: str, value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor differs from the model's by its grid alone."""
    if key == "pos_embed":
        return value.ndim == 4 and value.shape[3] == shape[3]
    return key.endswith("complex_weight") and value.ndim == 4 and tuple(value.shape[2:]) == shape[2:]


def _resampled(net: SpectralNet, key: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    if key == "pos_embed":
        return stretch_position(value, (shape[1], shape[2]))
    mixer = net.get_submodule(key.rpartition(".")[0])
    return fit_filter(value, native_grid(value.shape[0], value.shape[1]), mixer.grid, mixer.resample)  # type: ignore


def _tensors_of(net: SpectralNet, end: str) -> set[str]:
    """Keys of the modules that ``pretrained_cfg`` names as ``first_conv`` or ``classifier``."""
    names = net.pretrained_cfg[end]
    return {f"{name}.{kind}" for name in ([names] if isinstance(names, str) else names) for kind in ("weight", "bias")}


def _spare_modules(net: SpectralNet) -> list[str]:
    """Modules that a classifier's file has and this model can do without."""
    spare = [] if net.token_label and net.num_classes else ["token_head"]
    if net.num_classes == 0:
        spare.append("head")
    if net.out_norms is None:
        spare.append("out_norms")
    return [*spare, *net.pruned]


def _some(keys: list[str], most: int = 6) -> str:
    rest = len(keys) - most
    return ", ".join(keys[:most]) + (f" and {rest} more" if rest > 0 else "")
