"""Methods onto a live model, by name."""

import difflib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from typing import Any, get_type_hints

import torch
from torch import nn

from ..errors import FreqFormerError
from . import methods as _methods  # noqa: F401  (each module there registers its own)
from .backbone import blank_image, in_evaluation
from .handle import ALIASES, METHODS, NAME, Adapters, Handle, freeze, handles
from .methods.hub import HubHandle, hub_config, hub_names, restored


def attach(model: nn.Module, method: Any, **options: Any) -> Handle:
    """Put a method of parameter-efficient fine-tuning onto a model; everything else of the model is frozen.

    Methods combine: attach one after the other. Between the blocks prompts come first, then frequency modules.

    Args:
        model: a timm model of transformer blocks, or an isotropic one of this package; it is changed in place.
        method: a name of ``METHODS``, or of a method of Hugging Face PEFT, such as ``"lora"``; or a ``PeftConfig``.
        **options: the method's, such as ``num_tokens=10``; of PEFT's methods the fields of their config.

    Returns:
        The handle that trains, saves, folds and removes it.

    Raises:
        FreqFormerError: an unknown method or option, a method that is there already, or a model that cannot be
            adapted; the message says why.
        MissingExtra: the method is PEFT's, and PEFT is not installed.
    """
    kind, chosen = _resolve(method, options)
    found = getattr(model, NAME, None)
    fresh = not isinstance(found, Adapters)
    adapters = found if isinstance(found, Adapters) else Adapters(model)
    handle = kind(model, adapters, chosen)
    name = handle.name
    _refuse_beside(handle, adapters)
    if fresh:
        model.add_module(NAME, adapters)
    try:
        handle.build()
    except Exception:
        # What was refused leaves the model as it was.
        adapters._modules.pop(name, None)
        if fresh:
            adapters.leave(model)
        freeze(model)
        raise
    adapters.handles[name] = handle
    adapters.arrange()
    freeze(model)
    for module in handle.modules():
        module.train(model.training)
    try:
        with in_evaluation(model), torch.no_grad():
            model(blank_image(model))
    except Exception as error:
        handle.remove()
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        needs = f", which needs {handle.needs}" if handle.needs else ""
        raise FreqFormerError(f"{adapters.backbone.name} does not run with {name}{needs}: {reason}") from error
    return handle


def describe_all(model: nn.Module) -> list[dict[str, Any]]:
    """Every method on a model with its options, as plain containers from which `reattach` makes them again."""
    return [handle.describe() for handle in handles(model)]


def reattach(model: nn.Module, described: Sequence[Mapping[str, Any]]) -> None:
    """Put the methods onto a model that `describe_all` found on its like; what they learned is not in there.

    Raises:
        FreqFormerError: one of them is unknown, or does not fit the model.
    """
    for row in described:
        method, options = row["method"], row["options"]
        handle = attach(model, method, **options) if method in METHODS else attach(model, restored(options))
        if row.get("folded"):
            handle.fold_as(row)


def _refuse_beside(handle: Handle, adapters: Adapters) -> None:
    """Raise FreqFormerError where a method that is on the model leaves no place for another."""
    for other in adapters.handles.values():
        what = "folded" if other.folded else "on this model"
        remedy = "make the model again" if other.folded else "detach it first"
        if other.name == handle.name:
            raise FreqFormerError(f"{handle.name} is {what} already: {remedy}")
        if handle.replaces and other.replaces:
            raise FreqFormerError(
                f"{handle.name} does not go with {other.name}, which stands in place of the same linear maps: {remedy}"
            )


def detach_all(model: nn.Module) -> None:
    """Take every method from a model, the last one first."""
    for handle in reversed(handles(model)):
        handle.detach()


def fold_all(model: nn.Module) -> list[str]:
    """Fold every method of a model that can be folded; returns the names of those that cannot, which stay."""
    left = []
    # What trains the weights themselves comes first; then the last one, as it is the outermost.
    for handle in sorted(reversed(handles(model)), key=lambda handle: not handle.tunes_backbone):
        if handle.folded:
            continue
        try:
            handle.fold()
        except FreqFormerError:
            left.append(handle.name)
    return left


def _resolve(method: Any, options: dict[str, Any]) -> tuple[type[Handle], Any]:
    """A method's handle and its filled options."""
    if not isinstance(method, str):
        if not hasattr(method, "peft_type") or options:
            raise FreqFormerError("a method is a name, with its options, or a PeftConfig, which has them all")
        return HubHandle, deepcopy(method)
    name = ALIASES.get(method.lower(), method.lower().replace("-", "_"))
    kind = METHODS.get(name)
    if kind is None:
        if (config := hub_config(name, options)) is not None:
            return HubHandle, config
        near = difflib.get_close_matches(name, [*hub_names(), *METHODS], n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(METHODS)}, or one of PEFT's"
        raise FreqFormerError(f"there is no method {method!r}: {hint}")
    known = [field.name for field in fields(kind.Options)]
    if unknown := options.keys() - set(known):
        hint = f"it has {', '.join(known)}" if known else "it has none"
        raise FreqFormerError(f"{name} has no option {sorted(unknown)[0]!r}: {hint}")
    types = get_type_hints(kind.Options)
    for option, value in options.items():
        wanted = (int, float) if types[option] is float else types[option]
        if not isinstance(value, wanted) or isinstance(value, bool) != (types[option] is bool):
            raise FreqFormerError(f"{name}: {option} must be {types[option].__name__}, not {value!r}")
    return kind, kind.Options(**options)
