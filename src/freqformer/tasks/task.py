"""What all tasks share as Lightning modules: the optimiser, its schedule and the seeding of each step."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from ..data import mix
from ..errors import FreqFormerError
from .config import RunConfig

Batch = dict[str, Any]


class Task(LightningModule):
    """A network, its loss and its metrics; subclasses say what they are.

    Args:
        config: the run's settings.
        model: the network; its checkpoint keys begin with ``model.``.
    """

    monitor: str
    """The metric whose largest value marks the best epoch."""

    def __init__(self, config: RunConfig, model: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.model = model
        if config.compile:
            model.compile()

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch, a scalar."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of its model, in the fields of timm's ``config.json``."""

    @abstractmethod
    def draw(self, folder: Path) -> None:
        """Draw the last evaluation into a folder."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One micro-batch; its randomness depends on nothing but the seed, its number and the rank."""
        torch.manual_seed(mix(self.config.seed, self.trainer.fit_loop.epoch_loop.total_batch_idx, self.global_rank))
        loss = self.loss(batch)
        self.log("train/loss", loss.detach(), on_step=True, on_epoch=False, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """timm's optimiser and schedule by name; the schedule is a pure function of the step."""
        config = self.config
        try:
            optimizer = create_optimizer_v2(
                self.model,
                opt=config.opt,
                lr=config.scaled_lr(self.trainer.world_size),
                weight_decay=config.weight_decay,
                momentum=config.momentum,
            )
        except (ValueError, AssertionError, KeyError) as error:
            raise FreqFormerError(f"there is no optimiser {config.opt!r} in timm: {error}") from error
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=config.sched,
            num_epochs=config.epochs,
            warmup_epochs=config.warmup(),  # type: ignore[arg-type]
            min_lr=config.min_lr,
            warmup_lr=config.warmup_lr,
            step_on_epochs=False,
            updates_per_epoch=max(1, steps // config.epochs),
        )
        if scheduler is None:
            raise FreqFormerError(f"there is no schedule {config.sched!r} in timm: try cosine, step or linear")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Scheduler, metric: Any) -> None:  # type: ignore[override]
        """Set the learning rate of the step to come."""
        scheduler.step_update(self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint say which model it holds."""
        checkpoint["description"] = self.describe()
