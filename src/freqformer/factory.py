"""Make a model by name, or from a file that says what it is."""

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from .adapters import describe_all, encoders, reattach
from .checkpoints import read_description, read_weights
from .errors import FreqFormerError
from .models import SpectralNet, canonical_name, load_checkpoint, model_names, spelling
from .models.loading import native_grid
from .models.official import to_canonical
from .onnx_model import OnnxModel

Classifier = SpectralNet | OnnxModel
"""What classifies images: it has ``num_classes`` and, as ``pretrained_cfg``, its preprocessing."""
DENSE_COMMANDS = {"detection": "detect", "segmentation": "segment"}
"""The task that a checkpoint names, where that is not classification, to its command."""


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


def create_encoder(
    name: str,
    *,
    num_classes: int,
    img_size: int | tuple[int, int] | None = None,
    weights: str | Path | None = None,
    weights_root: str | Path | None = None,
    pretrained: bool = True,
    **arguments: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Make a network to fine-tune, with a new classifier.

    Args:
        name: one of FreqFit's (``adapters.encoders.ENCODERS``), a model of timm or of this package, or the path of a
            run or a weight file of this package.
        num_classes: of the new classifier.
        img_size: input size in pixels; by default the network's own.
        weights: a weight file for a network of timm or of this package, in place of the published one.
        weights_root: the folder of the files that FreqFit's names stand for.
        pretrained: start from pre-trained weights.
        **arguments: the network's own keywords.

    Returns:
        The network, in training mode, and the keywords that make its like by timm's name in ``pretrained_cfg``.

    Raises:
        FreqFormerError: an unknown name, a keyword that the network does not take, or weights that cannot be had or
            do not fit.
    """
    size = {} if img_size is None else {"img_size": to_2tuple(img_size)}
    if name in encoders.ENCODERS:
        if weights is not None:
            raise FreqFormerError(f"{name} names its own file: put it under --weights-root, or name timm's model")
        more = {"weights_root": weights_root, "pretrained": pretrained}
        made = encoders.make_encoder(name, num_classes=num_classes, **more, **size, **arguments)  # type: ignore[arg-type]
        return made, {**encoders.keywords(name), **size, **arguments}
    if Path(name).exists():
        return _encoder_in(Path(name), num_classes, {**size, **arguments}, weights)
    if spelling(name) in model_names():
        given = {**size, **arguments, "num_classes": num_classes}
        try:
            model = create_model(name, checkpoint=weights, pretrained=pretrained and weights is None, **given)
        except FreqFormerError as error:
            why, _, own_file = str(error).partition(": download")
            raise FreqFormerError(
                f"{why}: give its file with --encoder-weights, or --no-pretrained" if own_file else str(error)
            ) from error
        return model, {**arguments, "img_size": list(model.img_size)}
    given = {"num_classes": num_classes, **size, **arguments}
    return _timm_model(name, weights, pretrained, given), {**size, **arguments}


def _encoder_in(
    path: Path, num_classes: int, arguments: dict[str, Any], weights: str | Path | None
) -> tuple[SpectralNet, dict[str, Any]]:
    """The network in a run or a weight file of this package, with a new classifier."""
    description = read_description(path)
    if description is None:
        raise FreqFormerError(
            f"{path} does not say which model it is: name that as --encoder, the file as --encoder-weights"
        )
    _require_classifier(description, path)
    if description.get("adapters"):
        raise FreqFormerError(f"{path} is an adapted model: name what it was adapted from as the encoder")
    given = {**description.get("model_args", {}), **arguments}
    model = create_model(description["architecture"], num_classes=num_classes, **given)
    keep = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    cfg = {key: value for key, value in description["pretrained_cfg"].items() if key in keep}
    model.pretrained_cfg = {**model.pretrained_cfg, **cfg}
    state = read_weights(path if weights is None else weights)
    # Its own classifier is for other data, even where that has as many classes.
    own = {key: value for key, value in model.state_dict().items() if key.startswith(("head.", "token_head."))}
    load_checkpoint(model, {**state, **own})
    return model, {**given, "img_size": list(model.img_size)}


def _timm_model(name: str, weights: str | Path | None, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    """A model of timm, with its published weights or a file's."""
    elsewhere = name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
    if not elsewhere and not timm.is_model(name):
        near = difflib.get_close_matches(name, [*encoders.ENCODERS, *timm.list_models()], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "name FreqFit's, a model of timm or ours, or a run"
        raise FreqFormerError(f"there is no encoder {name!r}: {hint}")
    try:
        model = timm.create_model(name, pretrained=pretrained and weights is None, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise FreqFormerError(f"cannot make {name}: {_line(error)}") from error
    except Exception as error:  # the hub's client, torch and safetensors have errors of their own
        raise FreqFormerError(
            f"cannot fill {name} ({_line(error)}): give its weights with --encoder-weights, or --no-pretrained"
        ) from error
    if weights is not None:
        _fill_from(model, weights, name)
    if "img_size" in arguments:
        net = cast(SpectralNet, model)
        cfg = net.pretrained_cfg
        net.pretrained_cfg = {**cfg, "input_size": (cfg["input_size"][0], *arguments["img_size"])}
    return model


def _fill_from(model: nn.Module, weights: str | Path, name: str) -> None:
    """Every tensor but the classifier's from a file; timm's own loader passes over what does not fit."""
    state: Mapping[str, Tensor] = read_weights(weights)
    # timm fits names, position embeddings and patches in the module of each family.
    fit = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        state = state if fit is None else fit(dict(state), model)
    except Exception as error:  # it raises whatever another network's tensors lead to
        raise FreqFormerError(f"{weights} does not fit {name}: {_line(error)}") from error
    named = cast(SpectralNet, model).pretrained_cfg["classifier"]
    classifier = tuple(f"{path}." for path in ([named] if isinstance(named, str) else named))
    given = {key: value for key, value in state.items() if not key.startswith(classifier)}
    own = {key: value for key, value in model.state_dict().items() if not key.startswith(classifier)}
    for key in [*own, *given]:
        what = "has no" if key not in given else "has an unknown" if key not in own else None
        if what is not None:
            raise FreqFormerError(f"{weights} does not fit {name}: it {what} {key}")
        if given[key].shape != own[key].shape:
            raise FreqFormerError(
                f"{weights} does not fit {name}: its {key} is {tuple(given[key].shape)}, the network's "
                f"{tuple(own[key].shape)}"
            )
    model.load_state_dict(given, strict=False)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
    _require_classifier(description, path)
    if not isinstance(description, dict) or not {"architecture", "pretrained_cfg"} <= description.keys():
        raise FreqFormerError(f"the config.json of {path} describes no model of this package")
    name = description["architecture"] if description.get("adapters") else canonical_name(description["architecture"])
    if arch is not None and canonical_name(arch) != name:
        raise FreqFormerError(f"{path} holds {name}, not {arch}: leave out --arch or correct it")
    arguments = {"num_classes": description.get("num_classes"), **description.get("model_args", {})}
    adapted = description.get("adapters")
    # What is adapted may be any model of timm, which behaves like ours.
    model = cast(SpectralNet, timm.create_model(name, **arguments)) if adapted else create_model(name, **arguments)
    label_names = description.get("label_names")
    model.pretrained_cfg = {**model.pretrained_cfg, **description["pretrained_cfg"], "label_names": label_names}
    if adapted:
        reattach(model, adapted)
        _fill(model, path)
    else:
        load_checkpoint(model, path)
    return model.eval(), description


def _require_classifier(description: Any, path: str | Path) -> None:
    task = description.get("task") if isinstance(description, dict) else None
    if task is not None:
        command = DENSE_COMMANDS.get(task, task)
        raise FreqFormerError(
            f"{path} holds a model of {task}, not of classification: use `freqformer {command} eval|predict`"
        )


def _fill(model: nn.Module, path: str | Path) -> None:
    try:
        model.load_state_dict(read_weights(path))
    except RuntimeError as error:
        raise FreqFormerError(f"the weights of {path} do not fit its description: {_line(error)}") from error


def describe_model(
    model: nn.Module, arguments: Mapping[str, Any], label_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """What a checkpoint says of its model, in the fields of timm's ``config.json``; `load_model` reads it back.

    Args:
        model: a model that `create_model` or `create_encoder` made; its adapters are described too.
        arguments: the keywords it was made with, beside its image size and classes.
        label_names: names of the classes.

    Returns:
        Plain containers alone.
    """
    net = cast(SpectralNet, model)
    cfg = net.pretrained_cfg
    keep = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation", "first_conv", "classifier")
    size = {"img_size": list(net.img_size)} if isinstance(model, SpectralNet) else {}
    described = {
        "architecture": cfg["architecture"],
        "num_classes": net.num_classes,
        "num_features": net.num_features,
        "model_args": {**{key: _plain(value) for key, value in arguments.items()}, **size},
        "label_names": None if label_names is None else list(label_names),
        "pretrained_cfg": {**{key: _plain(cfg.get(key)) for key in keep}, "num_classes": net.num_classes},
    }
    adapters = describe_all(model)
    return {**described, "adapters": adapters} if adapters else described


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


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
