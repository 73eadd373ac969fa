"""Read and write weight files: safely (nothing is unpickled but tensors) and whole (written aside, then moved)."""

import argparse
import json
import os
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import FreqFormerError
from .torchscript import is_torchscript, read_torchscript

# Names under which training scripts keep the state dict, the averaged weights first.
_WRAPPERS = ("model_ema", "state_dict_ema", "model", "state_dict")
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# What timm wrote before safetensors.
_OLD_WEIGHTS_FILE = "pytorch_model.bin"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a weight file or a run's folder, wrappers and prefixes taken off.

    Raises:
        FreqFormerError: the file is missing, truncated, not a weight file, or holds objects other than
            tensors and plain containers (they are never unpickled).
    """
    path = weights_path(path)
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return unwrap(_torch_load(path))


def weights_path(path: str | Path) -> Path:
    """The weight file that a path names: itself, or ``model.safetensors`` in the folder of a run or of timm.

    ``hf-hub:USER/MODEL[@REVISION]`` is fetched into Hugging Face's cache; ``local-dir:FOLDER`` is the folder.

    Raises:
        FreqFormerError: there is none.
    """
    if str(path).startswith("hf-hub:"):
        return _from_hub(str(path).removeprefix("hf-hub:"))
    path = Path(str(path).removeprefix("local-dir:"))
    if path.is_dir():
        folder = path
        path = next((folder / name for name in (WEIGHTS_FILE, _OLD_WEIGHTS_FILE) if (folder / name).is_file()), folder)
        if path == folder:
            raise FreqFormerError(
                f"{folder} holds no {WEIGHTS_FILE}: name a run that has finished an epoch, or a weight file"
            )
    if not path.is_file():
        raise FreqFormerError(f"there is no checkpoint {path}")
    return path


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        # Beside the weights, in the cache's folder of this revision.
        hf_hub_download(repository, CONFIG_FILE, revision=revision or None)
        try:
            return Path(hf_hub_download(repository, WEIGHTS_FILE, revision=revision or None))
        except EntryNotFoundError:
            return Path(hf_hub_download(repository, _OLD_WEIGHTS_FILE, revision=revision or None))
    except Exception as error:  # the hub's client has its own errors for names, rights, networks and caches
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FreqFormerError(f"cannot fetch hf-hub:{name}: {reason}") from error


def unwrap(loaded: Any) -> dict[str, Tensor]:
    """The state dict inside what a training script saved.

    Raises:
        FreqFormerError: it holds no tensors by name.
    """
    if isinstance(loaded, Mapping):
        for name in _WRAPPERS:
            if isinstance(loaded.get(name), Mapping):
                return unwrap(loaded[name])
        state = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
        for prefix in ("module.", "model.", "_orig_mod."):
            if state and all(key.startswith(prefix) for key in state):
                return unwrap({key[len(prefix) :]: value for key, value in state.items()})
        if state:
            return state
    raise FreqFormerError("the checkpoint holds no weights: expected tensors by parameter name")


def read_description(path: str | Path) -> dict[str, Any] | None:
    """The ``config.json`` that belongs to a weight file (beside it, in it, or in its run), if there is one.

    It has timm's fields: ``architecture``, ``model_args``, ``num_classes``, ``label_names``, ``pretrained_cfg``.
    """
    path = weights_path(path)
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as file:
            text = (file.metadata() or {}).get("config")
        if text is None and (path.parent / CONFIG_FILE).is_file():
            text = (path.parent / CONFIG_FILE).read_text()
        return _parsed(text, path) if text else None
    loaded = _torch_load(path)
    described = loaded.get("description") if isinstance(loaded, Mapping) else None
    if described is None and path.name == _OLD_WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file():
        return _parsed((path.parent / CONFIG_FILE).read_text(), path)
    return described


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FreqFormerError(f"{path.parent / CONFIG_FILE} is not valid JSON: {error}") from error


def epochs_done(path: Path) -> int:
    """The epochs that a run had finished when it wrote a checkpoint to continue from.

    Raises:
        FreqFormerError: it is missing, unreadable, or holds weights alone.
    """
    loaded = _torch_load(weights_path(path)) if path.suffix != ".safetensors" else {}
    if not (isinstance(loaded, Mapping) and {"state_dict", "loops", "optimizer_states"} <= loaded.keys()):
        raise FreqFormerError(f"{path} holds no training state to resume: start from its weights with --finetune")
    return loaded["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def save_model(folder: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write ``model.safetensors`` and ``config.json`` in timm's folder layout, each whole or not at all.

    Args:
        folder: where to; made when absent.
        state: parameter name to tensor.
        description: what `read_description` is to return, also kept inside the weight file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / WEIGHTS_FILE, state, description)
    text = json.dumps(description, indent=2)
    write_whole(folder / CONFIG_FILE, lambda path: path.write_text(text))


def save_weights(target: Path, state: Mapping[str, Tensor], description: Mapping[str, Any] | None) -> None:
    """Write one safetensors file, whole or not at all, with what `read_description` is to return inside it."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    metadata = (
        {"format": "pt"} if description is None else {"format": "pt", "config": json.dumps(description, indent=2)}
    )
    write_whole(target, lambda path: save_file(tensors, path, metadata))


def average_weights(paths: Sequence[str | Path]) -> dict[str, Tensor]:
    """The mean of several checkpoints of one model (Izmailov et al., "Averaging Weights Leads to Wider Optima", 2018).

    Args:
        paths: weight files or runs' folders.

    Returns:
        Parameter name to the mean, summed in float64, in its own dtype; of whole numbers the last file's.

    Raises:
        FreqFormerError: no file, an unreadable one, or files of different models.
    """
    if not paths:
        raise FreqFormerError("there are no weights to average: name at least one file")
    first, *others = paths
    last = read_weights(first)
    shapes = {key: value.shape for key, value in last.items()}
    sums = {key: value.double() for key, value in last.items() if value.is_floating_point()}
    for path in others:
        last = read_weights(path)
        if {key: value.shape for key, value in last.items()} != shapes:
            raise FreqFormerError(f"{path} holds another model than {first}: their parameters differ")
        sums = {key: value + last[key] for key, value in sums.items()}
    return {key: (sums[key] / len(paths)).to(value.dtype) if key in sums else value for key, value in last.items()}


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``target``, sync it and move it there, so a kill leaves the old file.

    Raises:
        FreqFormerError: the file cannot be written (a full disk, no permission).
    """
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, target)
    except (OSError, SafetensorError) as error:
        raise FreqFormerError(f"cannot write {target}: {error}") from error
    finally:
        aside.unlink(missing_ok=True)


def _torch_load(path: Path) -> Any:
    try:
        if is_torchscript(path):
            return read_torchscript(path)
        # The DeiT-style scripts keep their parsed arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise FreqFormerError(f"cannot read {path}: not a plain weight file, or it holds code ({reason})") from error
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise FreqFormerError(f"cannot read {path}: truncated or not a weight file") from error


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise FreqFormerError(f"cannot read {path}: truncated or not a safetensors file ({error})") from error
