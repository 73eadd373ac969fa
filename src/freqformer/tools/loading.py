"""The benchmark of loading: images read and augmented per second, beside how many a model trains on."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar

from torch.utils.data import DataLoader

from ..bench.base import Benchmark, Table, at_least_one, milliseconds, readable, rounded
from ..bench.networks import Network, make_step
from ..bench.record import Row, make_row
from ..bench.timing import Spread, paired, spread
from ..data import EpochBatchSampler, Samples
from ..engine.datamodule import loader_arguments
from ..tasks import ClassificationConfig, require

_MODEL = "model"


@dataclass
class LoaderBenchmark(Benchmark):
    """How fast images are read and augmented by a number of workers, and how fast a model trains on them."""

    kind: ClassVar[str] = "data"

    arch: str = "freqformer_n"
    """The model that trains on the images."""
    data_set: str = "IMNET"
    """The data set, as in `freqformer train`."""
    data_path: str | None = None
    """The folder the data set lies in."""
    input_size: int | None = None
    """Image side in pixels; by default the model's native size."""
    batch_size: int = 128
    """Images in a batch."""
    num_workers: list[int] = field(default_factory=lambda: [0, 2])
    """Numbers of processes that load images, measured one after another."""
    aa: str = "rand-m9-mstd0.5-inc1"
    """timm's auto-augment policy; none is off."""
    reprob: float = 0.0
    """Probability of random erasing."""
    compile: bool = False
    """Compile the model with torch.compile."""

    def check(self) -> None:
        """Refuse settings outside their range."""
        super().check()
        at_least_one("batch_size", self.batch_size)
        for workers in self.num_workers:
            require(workers >= 0, "--num-workers", "0 or more", workers)
        self._config().check()

    def cases(self) -> Sequence[str | int]:
        """The model's training step, then the numbers of workers."""
        return [_MODEL, *self.num_workers]

    def measure(self, case: str | int) -> Iterator[Row]:
        """Time the model, or the loader with a number of workers; neither runs while the other is timed."""
        if case == _MODEL:
            task, self._samples, _ = self._config().build()
            # Refuses a split smaller than a batch before the model is timed on one.
            self._batches = _Endless(len(self._samples), self.batch_size)
            self._size = task.model.pretrained_cfg["input_size"][-1]
            seconds = self._model()
            self._model_rate = self.batch_size / seconds.median
            yield self._row({"part": _MODEL, "compiled": self.compile}, seconds)
        else:
            seconds = _per_batch(self._samples, self._batches, int(case), self.rounds, self.warmup)
            row = self._row({"part": "loader", "num_workers": case}, seconds)
            row["result"]["loader_over_model"] = rounded(self.batch_size / seconds.median / self._model_rate)
            yield row

    def table(self, rows: Sequence[Row]) -> Table:
        """Images per second, and how many times the model's, a line for each number of workers."""
        lines = []
        for row in rows:
            setting, result = row["setting"], row["result"]
            part = f"training {setting['arch']}" if setting["part"] == _MODEL else f"{setting['num_workers']} workers"
            ratio = f"{result['loader_over_model']:.2f}" if "loader_over_model" in result else "-"
            lines.append([part, readable(result["images_per_second"]), readable(result["ms"]), ratio])
        return ["what", "images/s", "ms a batch", "times the model's"], lines

    def _config(self) -> ClassificationConfig:
        return ClassificationConfig(
            arch=self.arch,
            data_set=self.data_set,
            data_path=self.data_path,
            input_size=self.input_size,
            batch_size=self.batch_size,
            aa=self.aa,
            reprob=self.reprob,
        )

    def _model(self) -> Spread:
        network = Network(
            self.arch,
            self._size,
            self.batch_size,
            self.dtype,
            self.torch_device().type,
            autocast=True,
            compiled=self.compile,
            train=True,
        )
        step = make_step(network)
        return spread(paired({_MODEL: step}, self.torch_device(), rounds=self.rounds, warmup=self.warmup)[_MODEL])

    def _row(self, setting: dict[str, Any], seconds: Spread) -> Row:
        shared = {
            "arch": self.arch,
            "data_set": self.data_set,
            "images": len(self._samples),
            "input_size": self._size,
            "batch_size": self.batch_size,
            "aa": self.aa,
            "reprob": self.reprob,
            "rounds": self.rounds,
        }
        result = {"images_per_second": rounded(self.batch_size / seconds.median), **milliseconds(seconds)}
        device = self.torch_device().type
        return make_row(self.kind, {**setting, **shared}, result, dtype=self.dtype, device=device)


class _Endless:
    """The batches of one epoch after another, so that no pause between epochs is timed."""

    def __init__(self, images: int, batch_size: int) -> None:
        self._epoch = 0
        self._sampler = EpochBatchSampler(images, batch_size, 0, lambda: (self._epoch, 0))

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for self._epoch in count():
            yield from self._sampler


def _per_batch(samples: Samples, endless: Any, workers: int, rounds: int, warmup: int) -> Spread:
    """Seconds that a batch takes when nothing waits for anything else."""
    arguments = {**loader_arguments(samples, workers), "persistent_workers": False}
    batches = iter(DataLoader(samples, batch_sampler=endless, **arguments))
    # Workers hand their batches over in turns: of a sample each has one. Those that wait already are not counted.
    together = max(1, workers)
    for _ in range(warmup + 2 * workers):
        next(batches)
    kept = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(together):
            next(batches)
        kept.append((time.perf_counter() - started) / together)
    return spread(kept)
