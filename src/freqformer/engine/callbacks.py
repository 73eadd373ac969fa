"""What happens beside the training loop: the record of its epochs, the best model, and orderly stops."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ..checkpoints import save_model, write_whole
from .pictures import draw_curves
from .processes import gathered, largest, rank, world_size
from .storage import METRICS

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A signal stopped the run after its state was saved."""

    def __init__(self, number: int, saved: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; continue with --resume (saved {saved})")
        self.exit_code = 128 + number


class Record(Callback):
    """Keeps each epoch's figures in ``metrics.json``, draws ``curves.png`` and prints a line per epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._loss_sum = torch.zeros(())
        self._steps = 0
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the record."""
        return {
            "history": self.history,
            "seconds": self._seconds + time.monotonic() - self._since,
            "loss_sums": gathered(float(self._loss_sum)),
            "steps": self._steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the record of an interrupted run."""
        self.history = list(state_dict["history"])
        self._seconds = state_dict["seconds"]
        sums = state_dict["loss_sums"]
        # In as many processes as before each goes on with its own sum, to the last bit.
        own = sums[rank()] if len(sums) == world_size() else sum(sums) / len(sums)
        self._loss_sum, self._steps = torch.tensor(own), state_dict["steps"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add to the epoch's mean loss."""
        # Still on its device: reading it here would make every step wait.
        self._loss_sum = outputs["loss"].detach().float() + self._loss_sum.to(outputs["loss"].device)
        self._steps += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write down the epoch."""
        now = time.monotonic()
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {
            "epoch": trainer.current_epoch + 1,
            "train/loss": sum(gathered(float(self._loss_sum))) / world_size() / max(self._steps, 1),
            **{name: value for name, value in metrics.items() if name.startswith("val/")},
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": self._seconds + now - self._since,
        }
        self.history.append(row)
        self._seconds, self._since, self._loss_sum, self._steps = 0.0, now, torch.zeros(()), 0
        if trainer.is_global_zero:
            write_metrics(self.folder, {"epochs": self.history})
            draw_curves(self.history, self.folder / "curves.png")
            print(_line(row, trainer.max_epochs), flush=True)


class BestModel(Checkpoint):
    """Exports the weights of each new best epoch as ``model.safetensors`` and ``config.json``.

    It reads the checkpoint that was just written, so what it exports is what was kept (the average of the
    weights, when there is one).
    """

    def __init__(self, folder: Path, best: Path) -> None:
        self.folder, self.best = folder, best
        self._exported = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the best checkpoint, if this epoch changed it."""
        if trainer.is_global_zero:
            self.export()

    def export(self) -> None:
        """Export the best checkpoint, if it is not exported yet."""
        changed = self.best.stat().st_mtime_ns
        if changed == self._exported:
            return
        checkpoint = torch.load(self.best, map_location="cpu", weights_only=True)
        prefix = "model."
        state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
        save_model(self.folder, state, checkpoint["description"])
        self._exported = changed


class StopOnSignal(Checkpoint):
    """On SIGINT or SIGTERM finishes the step, saves ``last.ckpt`` and raises `Interrupted`.

    A second signal stops at once; what the last save kept stays.
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
        previous = {number: signal.getsignal(number) for number in _SIGNALS}
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
        if trainer.is_last_batch:
            return
        number = self._agreed()
        if number:
            trainer.save_checkpoint(self.last)
            raise Interrupted(number, self.last)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop between two epochs."""
        number = self._agreed()
        if number:
            raise Interrupted(number, self.last)

    def _agreed(self) -> int:
        """The signal that any of the processes has received, or 0: all of them stop at the same step."""
        return largest(self._received or 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on nothing is left to save."""
        self._training = False

    def _install(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None or not self._training:
            raise Interrupted(number, self.last)
        self._received = number
        if rank() == 0:
            name = signal.Signals(number).name
            print(f"{name}: finishing the step, then saving; once more stops at once", flush=True)


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Write ``metrics.json`` whole."""
    text = json.dumps(metrics, indent=2)
    write_whole(folder / METRICS, lambda path: path.write_text(text))


def _line(row: dict[str, Any], epochs: int | None) -> str:
    figures = "  ".join(
        f"{name} {100 * value:.2f}%" if "top" in name else f"{name} {value:.4f}"
        for name, value in row.items()
        if "/" in name
    )
    return f"epoch {row['epoch']}/{epochs}  {figures}  lr {row['lr']:.2e}  {row['seconds']:.1f} s"
