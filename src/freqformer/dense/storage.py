"""A dense model's description, and the model that a run's folder or a checkpoint holds."""

from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoints import read_description, read_weights
from ..errors import FreqFormerError
from ..factory import DENSE_COMMANDS
from .detector import Detector, create_detector
from .segmenter import Segmenter, create_segmenter

_TASKS = {"detection": (Detector, create_detector), "segmentation": (Segmenter, create_segmenter)}


def describe_dense(model: Detector | Segmenter, **more: Any) -> dict[str, Any]:
    """What a checkpoint says of its model; `load_dense` reads it back.

    Args:
        model: a model of this package's functions.
        **more: what else to keep, plain containers alone.
    """
    task = next(name for name, (kind, _) in _TASKS.items() if isinstance(model, kind))
    return {
        "architecture": model.arguments["arch"],
        "task": task,
        "num_classes": len(model.label_names),
        "label_names": model.label_names,
        "model_args": model.arguments,
        **more,
    }


def load_dense(path: str | Path, task: str) -> tuple[Any, dict[str, Any]]:
    """The detector or segmenter that a checkpoint holds, in evaluation mode, and its description.

    Args:
        path: a run's folder, or a ``.ckpt`` or ``.safetensors`` file.
        task: ``"detection"`` or ``"segmentation"``.

    Raises:
        FreqFormerError: an unreadable file, or one that holds something else.
    """
    description = read_description(path)
    told = isinstance(description, dict)
    holds = description.get("task", "classification") if told else None  # type: ignore[union-attr]
    if description is None or holds != task:
        what = f"holds a model of {holds}, not of {task}" if told else "does not say what it holds"
        raise FreqFormerError(f"{path} {what}: name a run of `freqformer {DENSE_COMMANDS[task]} train`")
    arguments = dict(description["model_args"])
    for key in ("size", "native_size"):
        if isinstance(arguments.get(key), list):
            arguments[key] = tuple(arguments[key])
    create: Any = _TASKS[task][1]
    model: nn.Module = create(label_names=description["label_names"], **arguments)
    try:
        model.load_state_dict(read_weights(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise FreqFormerError(f"the weights of {path} do not fit its description: {reason}") from error
    return model.eval(), description
