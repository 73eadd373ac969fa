"""Weights into a model: official names translated, tensors fitted to its grid, every key accounted for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn

from ..checkpoints import read_description, read_weights, unwrap
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
    if isinstance(source, (str, Path)) and (read_description(source) or {}).get("adapters"):
        raise FreqFormerError(f"{where} is an adapted model: `freqformer.load_model` makes it, adapters and all")
    official = unwrap(source) if isinstance(source, Mapping) else read_weights(source)
    net = _network(model)
    state, mapped = to_canonical(official, where)
    report = LoadReport(mapped=mapped)
    problems = [*_account_for_keys(net, state, report), *_fit_shapes(net, state, report)]
    if problems:
        layout = layout_of(official)
        kind = f" (it holds {layout.name})" if layout else ""
        raise FreqFormerError(f"{where}{kind} does not fit {_name(net)}: {'; '.join(problems)}")
    own = net.state_dict()
    kept = {*report.left_out, *report.missing}
    net.load_state_dict({key: own[key] if key in kept else state[key] for key in own})
    return report


def _network(model: nn.Module) -> SpectralNet:
    """The network itself, also inside timm's feature extractor or a task."""
    net = model if isinstance(model, SpectralNet) else getattr(model, "model", None)
    if not isinstance(net, SpectralNet):
        raise FreqFormerError(f"{type(model).__name__} is no model of this package")
    return net


def _account_for_keys(net: SpectralNet, state: Mapping[str, Tensor], report: LoadReport) -> list[str]:
    """Report the keys that only one side has and that something explains; returns the others as problems."""
    own = net.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    fresh: tuple[str, ...] = ("out_norms.",)
    if not any(key.startswith("head.") for key in state):
        fresh += ("head.", "token_head.")
    if net.out_norms is not None:
        # A dense task's file needs no norm and no pooling for the image as a whole.
        fresh += ("norm.", "pool.")
    report.missing = [key for key in missing if key.startswith(fresh)]

    spare = [*net.pruned, *([] if net.out_norms else ["out_norms"])]
    if net.num_classes == 0:
        spare += ["head", "token_head"]
    elif net.token_head is None:
        spare.append("token_head")
    spared = [key for key in unexpected if key.startswith(tuple(f"{name}." for name in spare))]
    report.left_out = sorted(key for key in spared if key.startswith(("head.", "token_head.")))
    report.unexpected = [key for key in spared if key not in report.left_out]
    return _problems(
        missing=[key for key in missing if key not in report.missing],
        unexpected=[key for key in unexpected if key not in spared],
    )


def _fit_shapes(net: SpectralNet, state: dict[str, Tensor], report: LoadReport) -> list[str]:
    """Fit the tensors of ``state`` to the network's shapes; returns those that do not fit as problems."""
    first_conv, classifier = _tensors_of(net, "first_conv"), _tensors_of(net, "classifier")
    misfits = []
    for key, target in net.state_dict().items():
        if key not in state:
            continue
        shape = tuple(target.shape)
        if state[key].is_complex():
            misfits.append(f"{key} of {state[key].dtype}")
            continue
        value = state[key] = state[key].to(target.dtype)
        if tuple(value.shape) == shape:
            continue
        if _is_resampled(key, value, shape):
            state[key] = _resampled(net, key, value, shape)
            report.resampled.append(key)
        elif key in first_conv and _is_of_other_channels(value, shape):
            state[key] = adapt_input_conv(shape[1], value)
            report.adapted.append(key)
        elif key in classifier:
            report.left_out.append(key)
        else:
            misfits.append(f"{key} {tuple(value.shape)} for {shape}")
    report.resampled.sort()
    report.left_out.sort()
    return _problems(of_another_shape=misfits)


def _problems(**keys: list[str]) -> list[str]:
    return [f"{what.replace('_', ' ')}: {_some(some)}" for what, some in keys.items() if some]


def native_grid(height: int, columns: int) -> tuple[int, int]:
    """The (H, W) of a filter's half-spectrum of H rows and F columns: a square grid where F allows one.

    F does not tell an even width from the odd one after it; filters of the model's own shape are never touched.
    """
    return height, height if height // 2 + 1 == columns else 2 * (columns - 1)


def _is_resampled(key: str, value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor differs from the model's by its grid alone."""
    if value.ndim != 4 or value.numel() == 0:
        return False
    if key == "pos_embed":
        return (value.shape[0], value.shape[3]) == (shape[0], shape[3])
    return key.endswith("complex_weight") and tuple(value.shape[2:]) == shape[2:]


def _is_of_other_channels(value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a convolution's weight differs from the model's by its image channels alone, and timm can adapt it."""
    if value.ndim != 4 or (value.shape[0], *value.shape[2:]) != (shape[0], *shape[2:]):
        return False
    return value.shape[1] == 3 or (shape[1] == 1 and value.shape[1] > 0)


def _resampled(net: SpectralNet, key: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    if key == "pos_embed":
        return stretch_position(value, (shape[1], shape[2]))
    mixer = net.get_submodule(key.rpartition(".")[0])
    return fit_filter(value, mixer.grid, native_grid(value.shape[0], value.shape[1]), mixer.resample)  # type: ignore


def _tensors_of(net: SpectralNet, end: str) -> set[str]:
    """Keys of the modules that ``pretrained_cfg`` names as ``first_conv`` or ``classifier``."""
    names = getattr(net, "pretrained_cfg", {}).get(end, ())
    return {f"{name}.{kind}" for name in ([names] if isinstance(names, str) else names) for kind in ("weight", "bias")}


def _name(net: SpectralNet) -> str:
    return getattr(net, "pretrained_cfg", {}).get("architecture", "the network")


def _some(keys: list[str], most: int = 6) -> str:
    rest = len(keys) - most
    # A file may name its tensors with anything; the message stays one line.
    return ", ".join(key if key.isprintable() else repr(key) for key in keys[:most]) + (
        f" and {rest} more" if rest > 0 else ""
    )
