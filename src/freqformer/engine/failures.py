"""What goes wrong in the middle of a run, in one line that says how to go on."""

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from ..errors import FreqFormerError, RunFailed
from ..tasks import RunConfig
from .processes import largest
from .storage import last_checkpoint

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}


class LossIsNoNumber(RunFailed):
    """A run's loss became infinite or no number, more often than was allowed."""


@contextmanager
def explained(config: RunConfig, folder: Path) -> Iterator[None]:
    """Say in one line what ends a run: memory, a disk that is full or gone.

    Raises:
        RunFailed: in place of such an error.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(config) from error
    except RuntimeError as error:
        # What torch's allocator for CPUs says; it has no error of its own.
        if "DefaultCPUAllocator" in str(error):
            raise _out_of_memory(config) from error
        raise
    except FreqFormerError as error:
        # What writes whole files says which one it was.
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _UNWRITABLE and not isinstance(error, RunFailed):
            raise RunFailed(f"{error}; {how_to_go_on(folder)}") from error
        raise
    except OSError as error:
        if error.errno in _UNWRITABLE:
            raise RunFailed(f"cannot write into {folder}: {error.strerror}; {how_to_go_on(folder)}") from error
        raise


def how_to_go_on(folder: Path) -> str:
    """What is left of a run that failed."""
    last = last_checkpoint(folder)
    if last.exists():
        return f"the last good checkpoint is {last}, from which --resume goes on"
    return "no checkpoint was written yet"


class NonFiniteLoss(Callback):
    """Stops the run at a loss that is no number (`LossIsNoNumber`), or passes over so many steps with one.

    A step is passed over by taking its gradients away: neither the weights nor the optimiser see it.

    Args:
        folder: the run's folder.
        limit: how many steps of the run may be passed over.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.passed = 0
        self._bad: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The steps passed over."""
        return {"passed": self.passed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.passed = state_dict["passed"]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look at a micro-batch's loss."""
        value = float(loss.detach())
        if not math.isfinite(value):
            self._bad = value

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Stop, or take the gradients away, if a loss of this step was no number in any process."""
        if not largest(int(self._bad is not None)):
            return
        value = "not finite" if self._bad is None else str(self._bad)
        self._bad = None
        self.passed += 1
        rate = max(group["lr"] for group in optimizer.param_groups)
        what = f"the loss is {value} in step {trainer.global_step + 1} (epoch {trainer.current_epoch + 1})"
        what += f" at learning rate {rate:.2e}"
        if self.passed > self.limit:
            allowed = f", after {self.limit} such steps were passed over" if self.limit else ""
            advice = "lower --lr, or let --skip-nan N pass over such steps"
            raise LossIsNoNumber(f"{what}{allowed}; {how_to_go_on(self.folder)}; {advice}")
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        if trainer.is_global_zero:
            print(f"{what}; passed over ({self.passed} of {self.limit})", flush=True)


def _out_of_memory(config: RunConfig) -> RunFailed:
    size, double = config.batch_size, 2 * config.accumulate
    halved = f"--batch-size {size // 2} --accumulate {double} makes the same steps in half the memory; "
    advice = f"{halved if size > 1 else ''}--grad-checkpointing trades time for memory"
    return RunFailed(f"out of memory with --batch-size {size}: {advice}")
