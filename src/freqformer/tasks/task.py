"""What all tasks share as Lightning modules: the optimiser, its schedule and the seeding of each step."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from ..compiling import compile_for_training
from ..data import mix
from ..errors import FreqFormerError
from ..layers import Block
from .config import RunConfig

Batch = dict[str, Any]

# timm's schedules that are functions of the step alone, as exact resuming needs.
_SCHEDULES = ("cosine", "tanh", "poly", "step", "multistep")


class Task(LightningModule):
    """A network, its loss and its metrics; subclasses say what they are.

    Args:
        config: the run's settings.
        model: the network; its checkpoint keys begin with ``model.``.

    Raises:
        FreqFormerError: a setting is outside its range.
    """

    monitor: str
    """The metric whose largest value marks the best epoch."""

    def __init__(self, config: RunConfig, model: nn.Module) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.model = model
        self.steps_per_epoch: int | None = None
        """Steps of the optimiser; set by an engine that knows it: asking the Trainer would start its loader before a
        resumed run knows where it stopped."""
        self._period = 1
        """Steps of an epoch, where they share a learning rate."""
        if config.grad_checkpointing:
            model.set_grad_checkpointing()  # type: ignore[operator]
        if config.compile:
            compile_for_training(model)

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch, a scalar."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of its model, in the fields of timm's ``config.json``."""

    @abstractmethod
    def draw(self, folder: Path) -> None:
        """Draw the last evaluation into a folder."""

    def keep(self, folder: Path) -> None:
        """Write what else the run leaves of its best weights into its folder; most tasks leave nothing."""

    @property
    def keeps_examples(self) -> bool:
        """Whether this evaluation is one to look at: those after each epoch of training are not."""
        return self.trainer.state.fn is TrainerFn.VALIDATING

    def gathered(self, values: list[Any]) -> list[Any]:
        """The lists of all processes, one after another."""
        if self.trainer.world_size == 1:
            return values
        every: list[list[Any]] = [[] for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather_object(every, values)
        return [value for part in every for value in part]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One micro-batch; its randomness depends on nothing but the seed, its number and the rank."""
        torch.manual_seed(mix(self.config.seed, self.trainer.fit_loop.epoch_loop.total_batch_idx, self.global_rank))
        loss = self.loss(batch)
        self.log("train/loss", loss.detach(), on_step=True, on_epoch=False, prog_bar=True, sync_dist=True)
        return loss

    def configure_model(self) -> None:
        """Shard the network, block by block, where Lightning's ModelParallelStrategy trains it."""
        if self.device_mesh is None:
            return
        # Most runs do without.
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if isinstance(self.model, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        for block in [module for module in self.model.modules() if isinstance(module, Block)]:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)

    def configure_optimizers(self) -> Any:
        """timm's optimiser and schedule by name; the schedule is a pure function of the step."""
        steps = self.steps_per_epoch or max(1, int(self.trainer.estimated_stepping_batches) // self.config.all_epochs())
        optimizer, scheduler = self.optimization(steps, self.trainer.world_size)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimization(self, steps_per_epoch: int, processes: int = 1) -> tuple[Optimizer, Scheduler]:
        """The optimiser and its schedule.

        Raises:
            FreqFormerError: timm has none of that name, or refuses its settings.
        """
        config = self.config
        more: dict[str, Any] = {"eps": config.opt_eps, "betas": config.opt_betas}
        try:
            optimizer = create_optimizer_v2(
                # timm's groups for the decay by layers leave out what is frozen, as these do.
                _groups(self.model, config) if config.layer_decay is None else self.model,
                opt=config.opt,
                lr=config.scaled_lr(processes),
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                layer_decay=config.layer_decay,
                **{name: value for name, value in more.items() if value is not None},
            )
        except (ValueError, AssertionError, KeyError, TypeError) as error:
            raise FreqFormerError(
                f"timm refuses the optimiser --opt {config.opt} with these settings: {error}"
            ) from error
        if config.sched not in _SCHEDULES:
            raise FreqFormerError(f"there is no schedule {config.sched!r}: choose one of {', '.join(_SCHEDULES)}")
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=config.sched,
            # timm's warm-up before the schedule makes the run longer.
            num_epochs=config.epochs - (config.warmup() if config.warmup_prefix else 0),  # type: ignore[arg-type]
            decay_epochs=config.decay_epochs,
            decay_milestones=config.decay_milestones,
            decay_rate=config.decay_rate,
            warmup_epochs=config.warmup(),  # type: ignore[arg-type]
            min_lr=config.min_lr,
            warmup_lr=config.warmup_lr,
            warmup_prefix=config.warmup_prefix,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
        )
        assert scheduler is not None
        self._period = steps_per_epoch
        return optimizer, scheduler

    def lr_scheduler_step(self, scheduler: Scheduler, metric: Any) -> None:  # type: ignore[override]
        """Set the learning rate of the step to come, unless it stays for an epoch."""
        if not self.config.sched_by_epoch:
            scheduler.step_update(self.global_step)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of an epoch: that of the step with which it began."""
        if self.config.sched_by_epoch:
            scheduler: Any = self.lr_schedulers()
            scheduler.step_update(self.global_step // self._period * self._period)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint say which model it holds."""
        checkpoint["description"] = self.describe()


def _groups(model: nn.Module, config: RunConfig) -> list[dict[str, Any]]:
    """The trained parameters by their weight decay; the optimiser must not keep a state of frozen ones."""
    if not config.decay_all:
        spared: set[str] = getattr(model, "no_weight_decay", set)()
        return param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=spared)
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    biases = {f"{name}.bias" for name in ((classifier,) if isinstance(classifier, str) else classifier)}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        {"params": [p for name, p in trained.items() if name in biases], "weight_decay": 0.0},
        {"params": [p for name, p in trained.items() if name not in biases], "weight_decay": config.weight_decay},
    ]
    return [group for group in groups if group["params"]]
