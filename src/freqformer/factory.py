"""Make a model by name, or from a file that says what it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
from torch import Tensor

from .checkpoints import load_checkpoint, read_description, read_weights
from .errors import FreqFormerError
from .models import SpectralNet, canonical_name
from .models.official import from_official, square_grid


def create_model(name: str, *, checkpoint: str | Path | None = None, **arguments: Any) -> SpectralNet:
    """Make a model of this package.

    Args:
        name: ours or a paper's spelling, such as ``"gfnet_xs"`` or ``"gfnet-xs"``.
        checkpoint: weights to load, of this package or of the official codes.
        **arguments: the model's own keywords: ``num_classes``, ``img_size``, ``num_heads`` ...

    Returns:
        The model, in training mode.

    Raises:
        FreqFormerError: an unknown name, a keyword that the model does not take, or an unfit checkpoint.
    """
    try:
        model = cast(SpectralNet, timm.create_model(canonical_name(name), **arguments))
    except (TypeError, ValueError) as error:
        raise FreqFormerError(f"cannot make {name}: {error}") from error
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model


def load_model(path: str | Path, *, arch: str | None = None) -> SpectralNet:
    """Make the model that a checkpoint holds, in evaluation mode.

    Args:
        path: a run's folder, or a ``.ckpt``, ``.pth`` or ``.safetensors`` file.
        arch: the model's name, for a file of bare weights; checked against files that say it themselves.

    Returns:
        The model; ``pretrained_cfg`` says its preprocessing and, where known, ``label_names``.

    Raises:
        FreqFormerError: an unreadable file, bare weights without ``arch``, or another ``arch``.
    """
    description = read_description(path)
    if description is None:
        if arch is None:
            raise FreqFormerError(f"{path} does not say which model it is: name it with --arch")
        state = read_weights(path)
        model = create_model(arch, **_arguments_of(state, str(path)))
        load_checkpoint(model, state)
        return model.eval()
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
    return model.eval()


def _arguments_of(state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """Number of classes and native image size that bare weights were made for."""
    names = from_official(state)
    state = {names.get(key, key): value for key, value in state.items()}
    arguments: dict[str, Any] = {"num_classes": state["head.weight"].shape[0] if "head.weight" in state else 0}
    if "pos_embed" in state and "stem.proj.weight" in state:
        pos_embed = state["pos_embed"]
        grid = square_grid(pos_embed, where) if pos_embed.ndim == 3 else pos_embed
        patch = state["stem.proj.weight"].shape[-1]
        arguments["img_size"] = (grid.shape[1] * patch, grid.shape[2] * patch)
        arguments["in_chans"] = state["stem.proj.weight"].shape[1]
    return arguments
