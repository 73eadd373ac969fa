"""The network in any checkpoint of this package, whatever its task."""

from pathlib import Path

from torch import nn

from ..checkpoints import read_description
from ..errors import FreqFormerError
from ..factory import DENSE_COMMANDS, load_model
from ..models import spelling


def load_network(path: str | Path, arch: str | None = None) -> tuple[nn.Module, str]:
    """The network that a checkpoint holds, in evaluation mode.

    Args:
        path: a run's folder, a ``.ckpt``, ``.pth`` or ``.safetensors`` file, or ``hf-hub:USER/MODEL``; of a classifier,
            an adapted model, a detector or a segmenter.
        arch: the model's name, for a file of bare weights.

    Returns:
        The network, and its task: ``"classification"``, ``"detection"`` or ``"segmentation"``.

    Raises:
        FreqFormerError: an exported file, an unreadable one, bare weights without ``arch``, or another ``arch``.
    """
    if Path(path).suffix in (".onnx", ".pt2"):
        raise FreqFormerError(f"{path} is an exported graph without layers to look at: name the run it was made from")
    description = read_description(path)
    task = description.get("task") if isinstance(description, dict) else None
    if task not in DENSE_COMMANDS:
        return load_model(path, arch=arch), "classification"
    from ..dense import load_dense

    model, _ = load_dense(path, task)
    own = model.arguments["arch"]
    if arch not in (None, own) and spelling(str(arch)) != own:
        raise FreqFormerError(f"{path} holds {own}, not {arch}: leave out --arch or correct it")
    return model, task
