"""What happens beside the training loop: the record of its epochs, and the best model."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from ..checkpoints import save_model, save_weights
from ..tables import write_json
from .pictures import draw_curves
from .processes import gathered, rank, world_size
from .storage import METRICS, RAW_WEIGHTS


class EvaluateEvery(Callback):
    """Has the Trainer evaluate after every so many epochs, and after the last one.

    Args:
        epochs: how many.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set what the Trainer asks for at the epoch's end; a run resumed in the midst of one starts none."""
        is_last = trainer.current_epoch + 1 == trainer.max_epochs
        trainer.check_val_every_n_epoch = 1 if is_last else self.epochs


class Record(Callback):
    """Keeps each epoch's figures in ``metrics.json``, draws ``curves.png`` and prints a line per epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history: list[dict[str, Any]] = []
        self._seconds, self._since = 0.0, 0.0
        self._evaluated = False
        self._loss_sum, self._steps = torch.zeros(()), torch.zeros((), dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the record."""
        return {
            "history": self.history,
            "seconds": self._seconds + time.monotonic() - self._since,
            "loss_sums": gathered(float(self._loss_sum)),
            "steps": int(self._steps),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the record of an interrupted run."""
        self.history = list(state_dict["history"])
        self._seconds = state_dict["seconds"]
        sums = state_dict["loss_sums"]
        # In as many processes as before each goes on with its own sum, to the last bit.
        own = sums[rank()] if len(sums) == world_size() else sum(sums) / len(sums)
        self._loss_sum, self._steps = torch.tensor(own), torch.tensor(state_dict["steps"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add to the epoch's mean loss."""
        # Still on its device: reading it here would make every step wait. Lightning has divided the loss among the
        # micro-batches of a step.
        loss = outputs["loss"].detach().float() * trainer.accumulate_grad_batches
        finite = loss.isfinite()
        self._loss_sum = self._loss_sum.to(loss.device) + loss.where(finite, 0)
        self._steps = self._steps.to(loss.device) + finite

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """This epoch has scores."""
        self._evaluated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write down the epoch."""
        now = time.monotonic()
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {
            "epoch": trainer.current_epoch + 1,
            "train/loss": sum(gathered(float(self._loss_sum))) / world_size() / max(int(self._steps), 1),
            # Lightning still has the scores of the last epoch that was evaluated.
            **{name: value for name, value in metrics.items() if name.startswith("val/") and self._evaluated},
            # Layer-wise decay gives the deeper groups smaller ones.
            "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
            "seconds": self._seconds + now - self._since,
        }
        self.history.append(row)
        self._evaluated = False
        self._seconds, self._since, self._loss_sum, self._steps = (
            0.0,
            now,
            torch.zeros(()),
            torch.zeros_like(self._steps),
        )
        if trainer.is_global_zero:
            write_metrics(self.folder, {"epochs": self.history})
            draw_curves(self.history, self.folder / "curves.png")
            print(_line(row, trainer.max_epochs), flush=True)


class BestModel(Checkpoint):
    """Exports the weights of each new best epoch as ``model.safetensors`` and ``config.json``.

    It reads the checkpoint that was just written, so what it exports is what was kept. With a moving average that is
    the average; the weights themselves are then beside it, as ``model_raw.safetensors``.
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
        if not self.best.exists():
            # No epoch has been evaluated yet.
            return
        changed = self.best.stat().st_mtime_ns
        if changed == self._exported:
            return
        checkpoint = torch.load(self.best, map_location="cpu", weights_only=True)
        if "current_model_state" in checkpoint:
            raw = network_state(checkpoint["current_model_state"])
            save_weights(self.folder / RAW_WEIGHTS, raw, checkpoint["description"])
        save_model(self.folder, network_state(checkpoint["state_dict"]), checkpoint["description"])
        self._exported = changed


def network_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's part of a task's state dict, by its own names."""
    prefix = "model."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Write ``metrics.json`` whole."""
    write_json(folder / METRICS, metrics)


def _line(row: dict[str, Any], epochs: int | None) -> str:
    figures = "  ".join(
        f"{name} {100 * value:.2f}%" if "top" in name else f"{name} {value:.4f}"
        for name, value in row.items()
        if "/" in name
    )
    return f"epoch {row['epoch']}/{epochs}  {figures}  lr {row['lr']:.2e}  {row['seconds']:.1f} s"
