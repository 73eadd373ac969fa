"""What is kept of a run besides its last and best epoch: states by the clock, and epochs to average."""

import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ..checkpoints import average_weights, save_weights
from ..errors import RunFailed
from ..tasks import Task
from .callbacks import network_state
from .processes import largest
from .storage import epoch_weights


class SaveByTheClock(Checkpoint):
    """Saves the run's state within an epoch, whenever so many minutes have passed since it was last saved.

    Args:
        last: the file to keep up to date.
        minutes: the time between two saves.
    """

    def __init__(self, last: Path, minutes: float) -> None:
        self.last, self.seconds = last, 60 * minutes
        self._saved = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time; an epoch's end saves anyway."""
        if not at_step(trainer) or trainer.is_last_batch:
            return
        due = time.monotonic() - self._saved >= self.seconds
        # Clocks differ; saving is one act of all processes.
        if largest(int(due)):
            trainer.save_checkpoint(self.last)
            self._saved = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The state has just been saved."""
        self._saved = time.monotonic()


class KeepEpochs(Checkpoint):
    """Keeps the weights of a run's last epochs, to average them at its end.

    Args:
        folder: the run's folder.
        number: how many epochs.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep this epoch's weights, if it is one of the last."""
        if trainer.max_epochs is None or trainer.current_epoch < trainer.max_epochs - self.number:
            return
        # A collective where the parameters are sharded.
        state = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            assert isinstance(pl_module, Task)
            path = epoch_weights(self.folder, trainer.current_epoch + 1)
            save_weights(path, network_state(state), pl_module.describe())

    def average(self, task: Task, epochs: int, target: Path) -> None:
        """Write the mean of the weights that were kept of a run of so many epochs.

        Raises:
            RunFailed: some were not, as in a run that goes on with another one's last epoch.
        """
        kept = [epoch_weights(self.folder, epoch) for epoch in range(max(1, epochs - self.number + 1), epochs + 1)]
        if missing := [path for path in kept if not path.exists()]:
            raise RunFailed(
                f"there is no {missing[0]} to average: resume with --average-checkpoints 0, or "
                f"{len(kept) - len(missing)} for those epochs that are there"
            )
        save_weights(target, average_weights(kept), task.describe())


def at_step(trainer: Trainer) -> bool:
    """Whether the optimiser has just made a step: gradients that are still being accumulated are not saved."""
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return done % trainer.accumulate_grad_batches == 0
