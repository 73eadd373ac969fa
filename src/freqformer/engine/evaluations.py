"""An evaluation's folder: which one it is, and what is written into it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import FreqFormerError
from ..report import write_report
from ..tables import write_json
from ..tasks import Task
from ..tasks.pictures import save_figure
from .environment import record_start, write_evaluation
from .lightning import resolve_precision
from .processes import on_first
from .storage import CONFIG, FILTERS, METRICS, OF_EVALUATIONS, remove

AUTO = "auto"


def require_folder(folder: str | None, *, overwrite: bool) -> None:
    """Refuse an evaluation's folder that would lose something; raises FreqFormerError."""
    if folder in (None, AUTO):
        return
    path = Path(str(folder))
    if (path / CONFIG).exists():
        raise FreqFormerError(f"{path} holds a run, whose figures would be lost: choose another --output-dir")
    if (path / METRICS).exists() and not overwrite:
        raise FreqFormerError(f"{path} holds other results: choose another --output-dir, or say --overwrite")


@contextmanager
def folder_of(config: Any) -> Iterator[Path | None]:
    """An evaluation's folder, made before an hour's work and not after it; None writes nothing.

    Args:
        config: an evaluation's; its ``output_dir`` "auto" is a folder below ``runs`` that is not there yet.

    Raises:
        FreqFormerError: it cannot be made.
    """
    if config.output_dir is None:
        yield None
        return
    folder = Path(on_first(lambda: str(_make(config))))
    try:
        yield folder
    except BaseException:
        # Nothing has been written: an empty folder would only puzzle.
        with suppress(OSError):
            folder.rmdir()
        raise


def _make(config: Any) -> Path:
    folder = Path(config.output_dir)
    try:
        if config.output_dir != AUTO:
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        model = Path(config.model_path)
        name = model.name if model.is_dir() else model.stem
        name = "-".join(re.sub(r"[^\w.]+", "-", word).strip("-.") for word in ("eval", name, config.split))
        folder, number = Path("runs", name), 1
        Path("runs").mkdir(exist_ok=True)
        while True:
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                number += 1
                folder = Path("runs", f"{name}-{number}")
    except OSError as error:
        raise FreqFormerError(
            f"cannot make {folder}: {error.strerror}; choose another --output-dir, or none"
        ) from error


def write_folder(folder: Path, command: str, config: Any, task: Task, figures: dict[str, Any]) -> None:
    """Write an evaluation's folder: figures, tables, pictures and the page.

    Args:
        folder: where to.
        command: ``eval``, ``detect eval`` or ``segment eval``.
        config: its settings.
        task: what was evaluated.
        figures: of the evaluation.

    Raises:
        FreqFormerError: it cannot be written.
    """
    if config.overwrite:
        remove(folder, OF_EVALUATIONS)
    write_evaluation(folder, command, config)
    record_start(folder, config.accelerator, str(resolve_precision(config.precision, config.accelerator)))
    task.draw(folder)
    task.keep(folder)
    sharded = config.strategy == "fsdp"
    draw_filters(folder, task.model, config.model_path if sharded else None, getattr(config, "arch", None))
    write_json(folder / METRICS, figures)
    write_report(folder)


def draw_filters(folder: Path, model: nn.Module, path: Path | str | None = None, arch: str | None = None) -> None:
    """Draw the learned filters of a model into a folder, if it has any: ``filters.png``.

    Args:
        folder: where to.
        model: the model.
        path: its checkpoint, where its parameters lie in shards over several processes.
        arch: its name, for bare weights.
    """
    from ..visualize import filters, learned_filters, load_network

    if path is not None:
        model, _ = load_network(path, arch)
    if learned_filters(model):
        save_figure(filters(model), folder / FILTERS)
