"""Hands a run's samples to Lightning, from any step on."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from ..data import EpochBatchSampler, Seeded
from ..errors import FreqFormerError, RunFailed
from ..tasks import RunConfig
from .processes import rank, world_size


class RunData(LightningDataModule):
    """Training samples in an order that a resumed run takes up where it stopped, and validation samples.

    Args:
        config: the run's settings.
        train: samples that take keys (epoch, index, repeat).
        val: samples that take an index.
    """

    def __init__(self, config: RunConfig, train: Seeded, val: Seeded) -> None:
        super().__init__()
        self.config, self.train, self.val = config, train, val

    def sampler(self) -> EpochBatchSampler:
        """The order of training, from wherever the Trainer's counter stands when it is iterated.

        Raises:
            FreqFormerError: the training split is smaller than one batch.
        """
        sampler = EpochBatchSampler(
            len(self.train),
            self.config.batch_size,
            self.config.seed,
            lambda: divmod(self._batches_done(), len(sampler)),
            rank=rank(),
            world_size=world_size(),
            repeats=max(1, self.config.aug_repeats),
        )
        return sampler

    def train_dataloader(self) -> DataLoader:
        """Batches of the current epoch that are still to come."""
        return DataLoader(
            self.train, batch_sampler=self.sampler(), **loader_arguments(self.train, self.config.num_workers)
        )

    def val_dataloader(self) -> DataLoader:
        """This process's share of the validation split, in order."""
        return evaluation_loader(self.val, self.config.batch_size, self.config.num_workers)

    def problems(self) -> dict[str, dict[str, int]]:
        """What was dropped or mended of the annotations of each split that has such, and how often."""
        found = {
            name: getattr(samples.images, "problems", {})
            for name, samples in (("train", self.train), ("val", self.val))
        }
        return {name: problems for name, problems in found.items() if problems}

    def _batches_done(self) -> int:
        assert self.trainer is not None
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready


def evaluation_loader(samples: Seeded, batch_size: int, num_workers: int) -> DataLoader:
    """This process's share of the samples: over all processes each sample once, and none twice.

    Raises:
        FreqFormerError: there are fewer samples than processes.
    """
    images, processes = len(samples), world_size()
    if images < processes and processes > 1:
        raise FreqFormerError(f"{images} images are too few to evaluate in {processes} processes: use fewer")
    share = range(rank(), images, processes)
    # Every process has as many batches, the last of some is empty: forwards are collectives under ddp and fsdp.
    longest = len(range(0, images, processes))
    batches = [list(share[first : first + batch_size]) for first in range(0, longest, batch_size)]
    return DataLoader(samples, batch_sampler=batches, **loader_arguments(samples, num_workers))


def loader_arguments(samples: Seeded, num_workers: int) -> dict[str, Any]:
    """A DataLoader's arguments: how samples become batches, in a number of worker processes."""
    return {
        "collate_fn": samples.collate,
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "worker_init_fn": _leave_signals_to_the_main_process,
    }


@contextmanager
def worker_deaths(then: str = "") -> Iterator[None]:
    """Say in one line that a worker process died; see ``worker_died``."""
    try:
        yield
    except RuntimeError as error:
        died = worker_died(error, then)
        if died is None:
            raise
        raise died from error


def worker_died(error: BaseException, then: str = "") -> FreqFormerError | None:
    """The error for people when an error of torch's says that a process that loads images died.

    Args:
        error: what was raised.
        then: what more there is to do, such as "; continue with --resume".
    """
    found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(?: is killed by signal: ([\w ]+))?", str(error))
    if not isinstance(error, RuntimeError) or found is None:
        return None
    signal_ = f" ({found[2].strip()})" if found[2] else ""
    if "shared memory" in str(error):
        advice = "its shared memory is full: lower --num-workers or --batch-size, or give more of it (/dev/shm)"
    else:
        advice = "most often because memory ran out: lower --num-workers, or give more memory"
    return RunFailed(f"a process that loads images died{signal_}, {advice}{then}")


def _leave_signals_to_the_main_process(_: int) -> None:
    # Ctrl-C, torchrun and others signal the whole process group; the run has yet to save, and needs its workers for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
