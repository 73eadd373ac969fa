"""Orderly stops: a signal lets the step finish, saves the run and, under SLURM, queues it again."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from .processes import largest, on_first, rank
from .saving import at_step

# SLURM is asked for SIGUSR1 before the time is up: `sbatch --signal=USR1@120`.
_REQUEUE = getattr(signal, "SIGUSR1", None)
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([_REQUEUE] if _REQUEUE else []))


class Interrupted(Exception):
    """A signal stopped the run after its state was saved."""

    def __init__(self, number: int, saved: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; continue with --resume (saved {saved})")
        self.exit_code = 128 + number
        self.number = number
        self.asked_slurm = False
        """Whether SLURM has been asked to queue the job again."""


def requeue_once(stopped: Interrupted) -> None:
    """Ask SLURM to queue this job again, if the signal is the one for it and nobody has asked yet."""
    if stopped.number == _REQUEUE and not stopped.asked_slurm:
        stopped.asked_slurm = True
        on_first(requeue)


class StopOnSignal(Checkpoint):
    """On SIGINT, SIGTERM or SIGUSR1 finishes the step, saves ``last.ckpt`` and raises `Interrupted`.

    After SIGUSR1 inside a SLURM job the job is queued again. A second signal stops at once; what the last save kept
    stays.
    """

    def __init__(self, last: Path) -> None:
        self.last = last
        self._received: int | None = None
        self._training = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take over the signals for a whole run; only a process's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.getsignal(number) for number in SIGNALS}
        self._install()
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals back from Lightning, which has just set its own handlers."""
        self._training = True
        if threading.current_thread() is threading.main_thread():
            self._install()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop between two steps. An epoch's last step leaves it to the epoch's end, which saves anyway."""
        if at_step(trainer) and not trainer.is_last_batch and (number := self._agreed()) is not None:
            trainer.save_checkpoint(self.last)
            self._stop(number)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop between two epochs."""
        if (number := self._agreed()) is not None:
            self._stop(number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on nothing is left to save."""
        self._training = False

    def _agreed(self) -> int | None:
        """The signal to stop for, once any process has received one: all must stop at the same step."""
        return largest(self._received or 0) or None

    def _stop(self, number: int) -> None:
        stopped = Interrupted(number, self.last)
        requeue_once(stopped)
        raise stopped

    def _install(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None or not self._training:
            raise Interrupted(number, self.last)
        self._received = number
        if rank() == 0:
            name = signal.Signals(number).name
            print(f"{name}: finishing the step, then saving; once more stops at once", flush=True)


def requeue() -> None:
    """Ask SLURM to queue this job again; outside a SLURM job nothing happens."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID")
    if array is not None:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        print(f"SLURM did not queue job {job} again ({reason}): submit it again, with --resume", flush=True)
    else:
        print(f"SLURM queues job {job} again; it will go on from here", flush=True)
