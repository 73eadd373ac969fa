"""Hands a run's samples to Lightning, from any step on."""

import signal
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from ..data import EpochBatchSampler
from ..tasks import RunConfig


class RunData(LightningDataModule):
    """Training samples in an order that a resumed run takes up where it stopped, and validation samples.

    Args:
        config: the run's settings.
        train: samples that take keys (epoch, index, repeat).
        val: samples that take an index.
    """

    def __init__(self, config: RunConfig, train: Dataset, val: Dataset) -> None:
        super().__init__()
        self.config, self.train, self.val = config, train, val

    def sampler(self, rank: int = 0, world_size: int = 1) -> EpochBatchSampler:
        """The order of training, from wherever the Trainer's counter stands when it is iterated.

        Raises:
            FreqFormerError: the training split is smaller than one batch.
        """
        sampler = EpochBatchSampler(
            len(self.train),  # type: ignore[arg-type]
            self.config.batch_size,
            self.config.seed,
            lambda: divmod(self._batches_done(), len(sampler)),
            rank=rank,
            world_size=world_size,
            repeats=self.config.aug_repeats,
        )
        return sampler

    def train_dataloader(self) -> DataLoader:
        """Batches of the current epoch that are still to come."""
        assert self.trainer is not None
        sampler = self.sampler(self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(self.train, batch_sampler=sampler, **worker_arguments(self.config.num_workers))

    def val_dataloader(self) -> DataLoader:
        """The validation split, in order."""
        return evaluation_loader(self.val, self.config.batch_size, self.config.num_workers)

    def _batches_done(self) -> int:
        assert self.trainer is not None
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready


def evaluation_loader(samples: Dataset, batch_size: int, num_workers: int) -> DataLoader:
    """All samples once, in order."""
    return DataLoader(samples, batch_size=batch_size, **worker_arguments(num_workers))


def worker_arguments(num_workers: int) -> dict[str, Any]:
    """A DataLoader's arguments for a number of worker processes."""
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "worker_init_fn": _leave_interrupts_to_the_main_process,
    }


def _leave_interrupts_to_the_main_process(_: int) -> None:
    # Ctrl-C reaches the whole process group; the run has yet to save, and needs its workers to do so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
