"""Where a checkpoint stands in its run, for runs that go on with another global batch (more or fewer processes)."""

import math
from dataclasses import asdict, dataclass
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

from ..tasks import Task
from .processes import world_size

# Of Lightning's counters, those that a loop fills one after another for each batch.
_PHASES = ("ready", "started", "processed", "completed")


@dataclass(frozen=True)
class Pace:
    """What an epoch consists of.

    Args:
        images: images in a batch, over all processes.
        batches: batches in an epoch.
        steps: steps of the optimiser in an epoch.
        accumulate: batches of a step; the last one of an epoch may have fewer.
    """

    images: int
    batches: int
    steps: int
    accumulate: int = 1


class Position(Callback):
    """Lets each checkpoint say its pace, and moves one of another pace to the same place in its epoch.

    In the middle of an epoch that place is the last border of a batch before it: less than a batch of images is seen
    twice, none is left out. The learning rate follows the schedule of the new pace.
    """

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a resumed run's first step have the learning rate and the settings of its own config."""
        if trainer.global_step == 0:
            return
        assert isinstance(pl_module, Task)
        fresh, _ = pl_module.optimization(self.pace.steps, world_size())
        scheduler = cast(Scheduler, trainer.lr_scheduler_configs[0].scheduler)
        follow(trainer.optimizers[0], scheduler, fresh, trainer.global_step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write down the pace."""
        checkpoint["pace"] = asdict(self.pace)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count in batches of this run, and follow its schedule."""
        # Schedules are functions of the step; what is saved of them is their old length.
        checkpoint["lr_schedulers"] = []
        before = checkpoint.get("pace")
        if before is not None and Pace(**before) != self.pace:
            move(checkpoint, Pace(**before), self.pace)


def follow(optimizer: Optimizer, scheduler: Scheduler, fresh: Optimizer, step: int) -> None:
    """Give a restored optimiser the settings of a run, which may be others than those it was saved with.

    Args:
        optimizer: as a checkpoint restored it.
        scheduler: the run's.
        fresh: an optimiser as the run would begin with.
        step: steps made.
    """
    for group, new in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        group.update({name: value for name, value in new.items() if name != "params"})
    scheduler.step_update(step)


def move(checkpoint: dict[str, Any], old: Pace, new: Pace) -> None:
    """Rewrite a checkpoint's counters as if its run had had another pace from the start.

    Args:
        checkpoint: Lightning's, changed in place.
        old: the pace that it was written at.
        new: the pace to go on at.
    """
    loop = checkpoint["loops"]["fit_loop"]
    batches = loop["epoch_loop.batch_progress"]
    done = batches["current"]["ready"]
    epochs = (batches["total"]["ready"] - done) // old.batches
    # An epoch that is through stays so, however many images its ragged end has.
    now = new.batches if done >= old.batches else min(done * old.images // new.images, new.batches - 1)
    # Between two steps: gradients that were being added up are not in a checkpoint.
    now -= now % new.accumulate if now < new.batches else 0
    steps = math.ceil(now / new.accumulate)
    _set(batches["current"], now)
    _set(batches["total"], epochs * new.batches + now)
    for progress in loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"].values():
        _set(progress["current"], steps)
        _set(progress["total"], epochs * new.steps + steps)
    step = epochs * new.steps + steps
    checkpoint["global_step"] = step
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step
    for state in checkpoint["callbacks"].values():
        if "latest_update_step" in state:
            state["latest_update_step"] = step


def _set(counters: dict[str, Any], value: int) -> None:
    """Set what a loop counts, with those phases behind that were behind."""
    first = counters["ready"]
    for phase in _PHASES:
        if phase in counters:
            counters[phase] = max(0, value - (first - counters[phase]))
