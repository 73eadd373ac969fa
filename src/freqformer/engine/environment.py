"""What a run's page says of where it ran, how it was called and how it is repeated."""

import json
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning
import timm
import torch
import torchvision
import yaml

from .. import __version__
from ..bench.record import commit, device_name
from ..checkpoints import write_whole
from ..report.folder import OUTPUT
from ..tables import write_json
from .processes import on_gpu, world_size
from .storage import ENVIRONMENT, EVALUATION


def record_start(folder: Path, accelerator: str, precision: str, *, resumed: bool = False) -> None:
    """Add a start to ``environment.json``: versions, machine, device, processes, date and command.

    Args:
        folder: the run's folder.
        accelerator: Lightning's value, or "auto".
        precision: as it is used.
        resumed: whether the starts before this one belong to the same run.

    Raises:
        FreqFormerError: it cannot be written.
    """
    path = folder / ENVIRONMENT
    try:
        before = json.loads(path.read_text()) if resumed else []
    except (OSError, ValueError):
        # The run is older than this file.
        before = []
    start = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "freqformer": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "lightning": lightning.__version__,
        "os": platform.platform(),
        "device": device_name("cuda" if on_gpu(accelerator) else "cpu"),
        "processes": world_size(),
        "precision": precision,
        "command": typed(sys.argv),
    }
    write_json(path, [*(before if isinstance(before, list) else []), start])


def typed(argv: Sequence[str]) -> str | None:
    """The command as it was typed; None where this process is no ``freqformer``."""
    program = Path(argv[0] if argv else "")
    is_ours = program.name == "freqformer" or (program.name == "__main__.py" and program.parent.name == "freqformer")
    return shlex.join(["freqformer", *argv[1:]]) if is_ours else None


def write_evaluation(folder: Path, command: str, config: Any) -> None:
    """Write ``evaluation.yaml``: the command that repeats an evaluation, its settings, and those that were chosen.

    Args:
        folder: where to.
        command: ``eval``, ``detect eval`` or ``segment eval``.
        config: its dataclass.

    Raises:
        FreqFormerError: it cannot be written.
    """
    changed = [name for name in changes(config) if name not in OUTPUT]
    again = shlex.join(["freqformer", *command.split(), *flags_of(config), "--output-dir", "NEW"])
    content = {"command": again, "changed": changed, "settings": asdict(config)}
    text = yaml.safe_dump(content, sort_keys=False)
    write_whole(folder / EVALUATION, lambda path: path.write_text(text))


def changes(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not as its class has them."""
    given = {one.name: getattr(config, one.name) for one in fields(config)}
    return {one.name: given[one.name] for one in fields(config) if given[one.name] != one.default}


def flags_of(config: Any) -> list[str]:
    """The flags that say an evaluation's settings, but for where it writes; parsed they give the same config.

    Args:
        config: a dataclass without lists and dicts.
    """
    words: list[str] = []
    for name, value in changes(config).items():
        flag = f"--{name.replace('_', '-')}"
        if name in OUTPUT:
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
            continue
        word = "none" if value is None else str(list(value) if isinstance(value, (tuple, list)) else value)
        # A word that begins with a dash would be taken for another flag.
        words += [f"{flag}={word}"] if word.startswith("-") else [flag, word]
    return words
