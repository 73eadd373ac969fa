"""Adapters in files: small, with what they belong to, refused elsewhere."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoints import read_weights, save_weights, write_whole
from ..errors import FreqFormerError
from .attach import attach
from .handle import METHODS, Handle, backbone_of, handles
from .methods.hub import HubHandle
from .methods.tuned import Classifier, Linear

DESCRIPTION = "adapter.json"
WEIGHTS = "adapter.safetensors"
# PEFT's own names.
HUB_CONFIG, HUB_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save(handle: Handle, folder: Path) -> None:
    """Write a handle's weights and description; PEFT writes its own two files beside the description.

    Raises:
        FreqFormerError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FreqFormerError(f"cannot write {folder}: {error.strerror or error}") from error
    description = {"version": 1, **handle.describe(), "backbone": handle.backbone.describe()}
    text = json.dumps(description, indent=2)
    # What lies here is another's: with a description of its own it would be read as this one's.
    for name in (DESCRIPTION, WEIGHTS, HUB_CONFIG, HUB_WEIGHTS):
        (folder / name).unlink(missing_ok=True)
    if isinstance(handle, HubHandle):
        handle.write(folder)
    else:
        save_weights(folder / WEIGHTS, handle.state_dict(), None)
    write_whole(folder / DESCRIPTION, lambda path: path.write_text(text))


def load(model: nn.Module, path: str | Path) -> Handle:
    """Put a saved adapter onto a model.

    Args:
        model: the model it was trained on; of another image size, its filters are resampled.
        path: the folder that `Handle.save` wrote.

    Returns:
        Its handle.

    Raises:
        FreqFormerError: no adapter, a damaged one, or one of another backbone or of other weights of it.
    """
    folder = Path(path)
    description = read_adapter(folder)
    backbone_of(model).require(description["backbone"], str(folder))
    method, options = description["method"], description["options"]
    is_hub = method not in METHODS
    if is_hub and not (folder / HUB_CONFIG).is_file():
        raise FreqFormerError(f"{folder} is of the method {method!r}, and there is no method of that name")
    state = read_weights(folder / (HUB_WEIGHTS if is_hub else WEIGHTS))
    classes = description.get("num_classes")
    before = Classifier(model)
    if classes is not None and classes != before.num_classes:
        model.reset_classifier(classes)  # type: ignore[operator]
    try:
        handle = attach(model, _hub_config(folder)) if is_hub else attach(model, method, **options)
    except FreqFormerError:
        before.restore()
        raise
    if isinstance(handle, Linear):
        handle.before = before
    try:
        if (prompts := description.get("prompts", 0)) != handle.describe().get("prompts", 0):
            raise FreqFormerError(f"{folder} was trained beside {prompts} prompt tokens: put these on the model first")
        handle.load_state_dict(state)
    except FreqFormerError:
        handle.remove()
        raise
    return handle


def save_all(model: nn.Module, folder: Path) -> None:
    """Write every adapter of a model, each into a folder of its method's name."""
    for handle in handles(model):
        save(handle, folder / handle.name)


def read_adapter(folder: Path) -> dict[str, Any]:
    """The description in an adapter's folder.

    Raises:
        FreqFormerError: there is none, or it is damaged.
    """
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise FreqFormerError(f"{folder} holds no adapter: there is no {DESCRIPTION} in it") from error
    except (OSError, ValueError) as error:
        raise FreqFormerError(f"cannot read {path}: {error}") from error
    parts = {"method": str, "options": dict, "backbone": dict}
    if not isinstance(description, dict) or any(not isinstance(description.get(k), t) for k, t in parts.items()):
        raise FreqFormerError(f"{path} describes no adapter of this package")
    return description


def _hub_config(folder: Path) -> Any:
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FreqFormerError(f"PEFT cannot read {folder / HUB_CONFIG}: {error}") from error
    config.inference_mode = False
    return config
