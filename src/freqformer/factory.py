"""Make a model by name, or from a file that says what it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor

from .checkpoints import read_description, read_weights
from .errors import FreqFormerError
from .models import SpectralNet, canonical_name, load_checkpoint
from .models.loading import native_grid
from .models.official import to_canonical
from .onnx_model import OnnxModel

Classifier = SpectralNet | OnnxModel
"""What classifies images: it has ``num_classes`` and, as ``pretrained_cfg``, its preprocessing."""


def create_model(name: str, *, checkpoint: str | Path | None = None, **arguments: Any) -> SpectralNet:
    """Make a model of this package, as ``timm.create_model`` does once ``freqformer.models`` is imported.

    Args:
        name: ours or a paper's spelling, such as ``"gfnet_xs"`` or ``"gfnet-xs"``.
        checkpoint: weights to load, of this package or of the official codes.
        **arguments: the model's own keywords, ``num_classes``, ``img_size``, ``in_chans``, ``resample`` ..., and
            timm's, ``pretrained``, ``features_only``, ``out_indices``.

    Returns:
        The model, in training mode.

    Raises:
        FreqFormerError: an unknown name, a keyword that the model does not take, or an unfit checkpoint.
    """
    try:
        model = cast(SpectralNet, timm.create_model(canonical_name(name), **arguments))
    except (TypeError, ValueError) as error:
        raise FreqFormerError(f"cannot make {name}: {error}") from error
    if isinstance(model, SpectralNet):
        # Images are prepared for the size that the model is made for.
        cfg = model.pretrained_cfg
        model.pretrained_cfg = {**cfg, "input_size": (cfg["input_size"][0], *model.img_size)}
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model


def load_model(path: str | Path, *, arch: str | None = None) -> SpectralNet:
    """Make the model that a checkpoint holds, in evaluation mode.

    Args:
        path: a run's folder, a ``.ckpt``, ``.pth`` or ``.safetensors`` file, or ``hf-hub:USER/MODEL``.
        arch: the model's name, for a file of bare weights; checked against files that say it themselves.

    Returns:
        The model; ``pretrained_cfg`` says its preprocessing and, where known, ``label_names``.

    Raises:
        FreqFormerError: an unreadable file, bare weights without ``arch``, or another ``arch``.
    """
    return load_described(path, arch=arch)[0]


def load_classifier(path: str | Path, *, arch: str | None = None) -> Classifier:
    """The model in a checkpoint, as `load_model` makes it, or in an exported ``.onnx`` file."""
    return OnnxModel(path) if Path(path).suffix == ".onnx" else load_model(path, arch=arch)


def load_described(path: str | Path, *, arch: str | None = None) -> tuple[SpectralNet, dict[str, Any]]:
    """The model that a checkpoint holds, as `load_model` makes it, and its description (`describe_model`)."""
    description = read_description(path)
    if description is None:
        if arch is None:
            raise FreqFormerError(f"{path} does not say which model it is: name it with --arch")
        state = read_weights(path)
        arguments = _arguments_of(arch, state, str(path))
        model = create_model(arch, **arguments)
        load_checkpoint(model, state)
        return model.eval(), describe_model(model, {k: v for k, v in arguments.items() if k != "num_classes"})
    if not isinstance(description, dict) or not {"architecture", "pretrained_cfg"} <= description.keys():
        raise FreqFormerError(f"the config.json of {path} describes no model of this package")
    name = canonical_name(description["architecture"])
    if arch is not None and canonical_name(arch) != name:
        raise FreqFormerError(f"{path} holds {name}, not {arch}: leave out --arch or correct it")
    arguments = {"num_classes": description.get("num_classes"), **description.get("model_args", {})}
    model = create_model(name, **arguments)
    label_names = description.get("label_names")
    model.pretrained_cfg = {**model.pretrained_cfg, **description["pretrained_cfg"], "label_names": label_names}
    load_checkpoint(model, path)
    return model.eval(), description


def describe_model(
    model: SpectralNet, arguments: Mapping[str, Any], label_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """What a checkpoint says of its model, in the fields of timm's ``config.json``; `load_model` reads it back.

    Args:
        model: a model that `create_model` made.
        arguments: the keywords it was made with, beside its image size and classes.
        label_names: names of the classes.

    Returns:
        Plain containers alone.
    """
    cfg = model.pretrained_cfg
    keep = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation", "first_conv", "classifier")
    return {
        "architecture": cfg["architecture"],
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": {**arguments, "img_size": list(model.img_size)},
        "label_names": None if label_names is None else list(label_names),
        "pretrained_cfg": {
            **{key: list(cfg[key]) if isinstance(cfg[key], tuple) else cfg[key] for key in keep},
            "num_classes": model.num_classes,
        },
    }


def _arguments_of(arch: str, official: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """Number of classes and channels, native image size and token labels that bare weights were made for."""
    state, _ = to_canonical(official, where)
    with torch.device("meta"):
        model = create_model(arch)
    classifier = model.pretrained_cfg["classifier"]
    head = f"{classifier if isinstance(classifier, str) else classifier[0]}.weight"
    arguments: dict[str, Any] = {"num_classes": state[head].shape[0] if head in state and state[head].ndim else 0}
    if model.token_label:
        arguments["token_label"] = "token_head.weight" in state
    first_conv = state.get(f"{model.pretrained_cfg['first_conv']}.weight")
    if first_conv is not None and first_conv.ndim == 4:
        arguments["in_chans"] = first_conv.shape[1]
    size = _image_size(model, state)
    return arguments if size is None else {**arguments, "img_size": size}


def _image_size(model: SpectralNet, state: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """The native image size that a position embedding or filters tell, unless it is the model's own."""
    for key, own in model.state_dict().items():
        if key not in state or not (key == "pos_embed" or key.endswith("complex_weight")):
            continue
        stored = state[key]
        if stored.ndim != 4 or stored.numel() == 0:
            continue
        if stored.shape == own.shape:
            return None
        stride = model.stem.stride
        if key == "pos_embed":
            return stored.shape[1] * stride, stored.shape[2] * stride
        height, width = native_grid(stored.shape[0], stored.shape[1])
        stride *= 2 ** int(key.split(".")[1])
        return height * stride, width * stride
    return None
