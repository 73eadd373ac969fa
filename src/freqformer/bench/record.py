"""The rows that benchmarks leave: one format for all, with what is needed to repeat each."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import write_whole
from ..errors import FreqFormerError

Row = dict[str, Any]

COMMIT_VARIABLE = "FREQFORMER_COMMIT"
"""The environment variable that tells the commit where the source is a copy without its history."""
_PACKAGE = Path(__file__).parents[1]


def make_row(what: str, setting: Mapping[str, Any], result: Mapping[str, Any], *, dtype: str, device: str) -> Row:
    """One measurement, with the facts that are needed to repeat it.

    Args:
        what: what was measured, in a few words.
        setting: how: shapes, names, choices.
        result: the figures, each with its unit in its name.
        dtype: the precision.
        device: the device's type, ``"cpu"`` or ``"cuda"``.

    Returns:
        ``what``, ``setting``, ``result``, ``dtype``, ``device`` (its name), ``torch``, ``commit``, ``command`` and
        ``date``.
    """
    return {
        "what": what,
        "setting": dict(setting),
        "result": dict(result),
        "dtype": dtype,
        "device": device_name(device),
        "torch": torch.__version__,
        "commit": commit(),
        "command": command(sys.argv),
        "date": date.today().isoformat(),
    }


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to a file of rows, one a line; those that it has stay.

    Raises:
        FreqFormerError: the file holds something else, or cannot be written.
    """
    lines = [json.dumps(row) for row in [*read_rows(path), *rows]]
    text = "[\n" + ",\n".join(lines) + "\n]\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda aside: aside.write_text(text))


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file.

    Raises:
        FreqFormerError: the file holds something else.
    """
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text())
    except ValueError as error:
        raise FreqFormerError(f"{path} is not valid JSON: repair it, or name another --output-dir") from error
    if not (isinstance(rows, list) and all(isinstance(row, dict) and "what" in row for row in rows)):
        raise FreqFormerError(f"{path} holds no rows of benchmarks: move it away, or name another --output-dir")
    return rows


def command(words: Sequence[str]) -> str:
    """A command line that means the same on another machine: of an absolute path only the last name is kept."""
    program = Path(words[0]).name
    start = ["freqformer"] if program in ("freqformer", "__main__.py") else ["python", f"benchmarks/{program}"]
    return shlex.join([*start, *map(_relative, words[1:])])


def _relative(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{equals}{Path(value).name}" if os.path.isabs(value) else word


@lru_cache(maxsize=1)
def commit() -> str:
    """The commit of this package's source, ``+changes`` when it is changed; ``unknown`` outside its checkout."""
    told = os.environ.get(COMMIT_VARIABLE)
    if told:
        return told
    # Installed into another project's checkout the package is not among the files that git knows.
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return "unknown"
    head, changes = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", ".")
    return f"{head}+changes" if changes else str(head)


def _git(*arguments: str) -> str | None:
    """What git answers in the package's folder, or None where there is no git, or no checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=_PACKAGE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def device_name(device: str) -> str:
    """A device's name: the GPU's, or the processor's with its half-precision units, and its cores."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    units = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
    threads = torch.get_num_threads()
    in_use = "1 core" if cores == 1 else f"{cores} cores" if threads == cores else f"{threads} of {cores} cores"
    return f"{' '.join([_processor(), *units])}, {in_use}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
