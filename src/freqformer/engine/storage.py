"""A run's folder: who may write into it, and how its checkpoints are kept."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ..checkpoints import write_whole
from ..errors import FreqFormerError, RunFailed
from ..report.folder import CONFIG, ENVIRONMENT, EVALUATION, FILTERS, METRICS, REPORT
from ..tasks.adaptation import ADAPTERS
from ..tasks.extremes import CONFUSIONS, EXAMPLES

CHECKPOINTS = "checkpoints"
LOGS = "logs"
RAW_WEIGHTS = "model_raw.safetensors"
AVERAGE_WEIGHTS = "model_average.safetensors"
OF_EVALUATIONS = (
    EVALUATION,
    METRICS,
    ENVIRONMENT,
    REPORT,
    EXAMPLES,
    FILTERS,
    "best.png",
    "worst.png",
    "confusion.png",
    CONFUSIONS,
    "per_class.csv",
    "per_class.png",
    "results.bbox.json",
    "results.segm.json",
    # Of versions before best.png and worst.png.
    "predictions.png",
)
"""What an evaluation writes, and so what replacing one removes."""
# What a run writes, and so what replacing a run removes; anything else in the folder is the user's.
_OWN = (
    CONFIG,
    CHECKPOINTS,
    LOGS,
    ADAPTERS,
    "bad_images.csv",
    "curves.png",
    *OF_EVALUATIONS,
    "model.safetensors",
    RAW_WEIGHTS,
    AVERAGE_WEIGHTS,
    "config.json",
)


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints beside their target, syncs and moves them, so a kill never costs the last good one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint whole."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_whole(target, lambda aside: _save(checkpoint, aside))
        except FreqFormerError as error:
            if not target.exists():
                raise
            raise RunFailed(f"{error}; the checkpoint before is still there: make room, then --resume") from error


def last_checkpoint(folder: Path) -> Path:
    """Where a run keeps the state it can be continued from."""
    return folder / CHECKPOINTS / "last.ckpt"


def epoch_weights(folder: Path, epoch: int) -> Path:
    """Where a run keeps the weights of one epoch, counted from 1, when it is to average the last ones."""
    return folder / CHECKPOINTS / f"epoch-{epoch:04d}.safetensors"


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    # Given a path, torch writes by its own means and raises a RuntimeError without the reason.
    with path.open("wb") as file:
        torch.save(checkpoint, file)


def prepare_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Make a run's folder, or refuse one that holds another run, or files that it would replace.

    Raises:
        FreqFormerError: it holds such and neither is set, it is not a folder, it cannot be written, or the
            disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise FreqFormerError(f"{folder} is not a folder: choose another --output-dir") from error
    except OSError as error:
        raise FreqFormerError(f"cannot make {folder}: {error.strerror}; choose another --output-dir") from error
    if (folder / CONFIG).exists() or (folder / EVALUATION).exists():
        if not (resume or overwrite):
            raise FreqFormerError(
                f"{folder} holds another run: continue it with --resume, replace it with --overwrite, or choose "
                "another --output-dir"
            )
        if not resume:
            remove(folder, _OWN)
    elif not overwrite:
        # The checkpoint to go on from may lie in a folder without a config.
        refuse_to_replace(folder, [name for name in _OWN if not (resume and name in (CHECKPOINTS, LOGS))])
    try:
        for name in (CHECKPOINTS, LOGS):
            (folder / name).mkdir(exist_ok=True)
        for place in (folder, folder / CHECKPOINTS):
            for name in (*_OWN, "best.ckpt", "last.ckpt", "epoch-*.safetensors"):
                for leftover in place.glob(f".{name}.*.tmp"):
                    leftover.unlink()
        for place in (folder, folder / CHECKPOINTS, folder / LOGS):
            probe = place / ".writable.tmp"
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise FreqFormerError(f"cannot write into {folder}: {error.strerror}; choose another --output-dir") from error


def refuse_to_replace(folder: Path, names: Iterable[str]) -> None:
    """Raise FreqFormerError for a folder that holds something of these names; empty folders are nothing."""
    for name in names:
        path = folder / name
        if any(path.iterdir()) if path.is_dir() else path.exists():
            raise FreqFormerError(
                f"{folder} holds a {name} that would be replaced: choose another --output-dir, or say --overwrite"
            )


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove the files and folders of these names from a folder, where they are there."""
    for name in names:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def require_space(folder: Path, parameters: int, epochs: int = 0) -> None:
    """Refuse to start a run whose checkpoints cannot fit on the disk.

    Args:
        folder: the run's folder.
        parameters: the model's parameters; a checkpoint holds each up to four times (weights, their average
            and the optimiser's two moments), and a run keeps two while it writes a third.
        epochs: how many epochs' weights it keeps besides.

    Raises:
        FreqFormerError: not enough free space.
    """
    needed = parameters * 4 * (4 * 3 + epochs)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise FreqFormerError(
            f"not enough disk for the checkpoints in {folder}: {needed / 2**20:.0f} MiB needed, "
            f"{free / 2**20:.0f} MiB free; choose another --output-dir or free some space"
        )
