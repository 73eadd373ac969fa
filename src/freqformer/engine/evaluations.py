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
from .storage import CONFIG, EVALUATION, FILTERS, METRICS, OF_EVALUATIONS, refuse_to_replace, remove

AUTO = "auto"


def require_folder(folder: str | None, *, overwrite: bool) -> None:
    """Refuse an evaluation's folder that would lose something; raises FreqFormerError."""
    if folder in (None, AUTO):
        return
    path = Path(str(folder))
    if (path / CONFIG).exists():
        raise FreqFormerError(f"{path} holds a run, whose figures would be lost: choose another --output-dir")
    if not overwrite:
        if (path / METRICS).exists() or (path / EVALUATION).exists():
            raise FreqFormerError(f"{path} holds other results: choose another --output-dir, or say --overwrite")
        refuse_to_replace(path, OF_EVALUATIONS)


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
    folder, is_new = on_first(lambda: _make(config))
    try:
        yield folder
    except BaseException:
        # Where nothing has been written a new folder would only puzzle.
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise


def _make(config: Any) -> tuple[Path, bool]:
    """The folder, and whether it was not there before."""
    folder = Path(config.output_dir)
    try:
        if config.output_dir != AUTO:
            is_new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            return folder, is_new
        model = Path(config.model_path)
        name = model.name if model.is_dir() else model.stem
        name = "-".join(re.sub(r"[^\w.]+", "-", word).strip("-.") for word in ("eval", name, config.split))
        folder, number = Path("runs", name), 1
        Path("runs").mkdir(exist_ok=True)
        while True:
            try:
                folder.mkdir()
                return folder, True
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
    if config.overwrite and ((folder / METRICS).exists() or (folder / EVALUATION).exists()):
        remove(folder, OF_EVALUATIONS)
    # Whatever becomes of the pictures, what was measured is kept.
    write_json(folder / METRICS, figures)
    write_evaluation(folder, command, config)
    record_start(folder, config.accelerator, str(resolve_precision(config.precision, config.accelerator)))
    task.keep(folder)
    sharded = config.strategy == "fsdp"
    draw(folder, task, config.model_path if sharded else None, getattr(config, "arch", None))


def draw(folder: Path, task: Task, path: Path | str | None = None, arch: str | None = None) -> None:
    """Draw a task's last evaluation and its model's filters into a folder, and write the page of what is there.

    Args:
        folder: where to; its figures and tables are there already.
        task: what was evaluated.
        path: the model's checkpoint, where its parameters lie in shards over several processes.
        arch: its name, for bare weights.

    Raises:
        FreqFormerError: something cannot be written; the page is, if it can be.
    """
    try:
        task.draw(folder)
        draw_filters(folder, task.model, path, arch)
    finally:
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
