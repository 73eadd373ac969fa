"""Benchmarks of whole networks, inference and training steps, against the official formulation or other networks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import FreqFormerError
from ..ops import LOWERINGS
from .base import DTYPES, MIB, Benchmark, Table, at_least_one, milliseconds, one_of, ratio, readable, rounded
from .memory import cpu_peaks, cuda_peak, is_measurable
from .networks import (
    OFFICIAL,
    Network,
    is_ours,
    make_step,
    official,
    require_close,
    require_equal_networks,
    require_known,
)
from .record import Row, make_row
from .timing import paired, speedup, spread


@dataclass
class ModelBenchmark(Benchmark):
    """Which networks to run on images, how, and against what."""

    kind: ClassVar[str] = "model"
    train: ClassVar[bool] = False

    arch: list[str] = field(default_factory=lambda: ["gfnet_xs", "freqformer_xs", "dfformer_s18"])
    """Models of this package, each measured against what --against names."""
    against: str = OFFICIAL
    """The official formulation of the same model, or another model of ours or of timm."""
    against_dtype: str | None = None
    """Precision of what ours is compared with; by default the same."""
    input_size: int = 224
    """Side of the images in pixels."""
    batch_size: int = 16
    """Images in a batch."""
    lowering: str | None = None
    """Ours uses this lowering; by default the ones that the rules choose."""
    compile: bool = False
    """Compile ours with torch.compile."""
    compile_baseline: bool = False
    """Compile what ours is compared with."""
    autocast: bool = False
    """In half precision keep weights in float32 under autocast, as the official formulation always does, rather than
    have weights and images in it."""
    memory: bool = True
    """Measure peak memory; on a CPU in a process of its own for each candidate."""

    def check(self) -> None:
        """Refuse settings outside their range."""
        super().check()
        for name in self.arch:
            require_known("--arch", name)
            if not is_ours(name):
                raise FreqFormerError(f"--arch {name} is timm's: name it with --against, beside one of ours")
        if self.against != OFFICIAL:
            require_known("--against", self.against)
        if self.against_dtype is not None:
            one_of("--against-dtype", self.against_dtype, DTYPES)
        if self.lowering is not None:
            one_of("--lowering", self.lowering, LOWERINGS)
        for name in ("input_size", "batch_size"):
            at_least_one(name, getattr(self, name))

    def cases(self) -> Sequence[str]:
        """The models."""
        return self.arch

    def measure(self, case: str) -> Iterator[Row]:
        """Check and time one model."""
        torch.compiler.reset()
        ours, against = self._networks(case)
        if self.against == OFFICIAL:
            # Without gradients: a training step changes the weights that would be compared.
            require_equal_networks(replace(ours, train=False), replace(against, train=False))
        networks = {"ours": ours, "against": against}
        steps, peaks = _prepare(networks, self.memory)
        if self.against == OFFICIAL and not self.train:
            # As they will be timed, compiled where they are.
            require_close(ours, against, "logits", steps["ours"](), steps["against"]())
        samples = paired(steps, self.torch_device(), rounds=self.rounds, warmup=self.warmup)
        result: dict[str, Any] = {}
        for name, kept in samples.items():
            seconds = spread(kept)
            result[name] = {"images_per_second": rounded(self.batch_size / seconds.median), **milliseconds(seconds)}
            if name in peaks:
                result[name]["peak_mib"] = rounded(peaks[name] / MIB)
        result |= ratio(speedup(samples["ours"], samples["against"]))
        if peaks:
            result["memory_ratio"] = rounded(peaks["ours"] / peaks["against"])
        setting = {
            "arch": case,
            "against": self.against,
            "input_size": self.input_size,
            "batch_size": self.batch_size,
            "ours": ours.describe(),
            "against_setting": against.describe(),
            "rounds": self.rounds,
        }
        yield make_row(self.kind, setting, result, dtype=self.dtype, device=ours.device)

    def table(self, rows: Sequence[Row]) -> Table:
        """Throughput, latency, memory and their ratios, a line a model."""
        header = ["model", "ours images/s", "ms", "MiB", f"{self.against} images/s", "ms", "MiB", "speedup", "memory"]
        lines = []
        for row in rows:
            result = row["result"]
            sides = [
                text
                for side in (result["ours"], result["against"])
                for text in (
                    readable(side["images_per_second"]),
                    readable(side["ms"]),
                    readable(side["peak_mib"]) if "peak_mib" in side else "-",
                )
            ]
            factor = f"{result['speedup']:.2f} ({result['speedup_p10']:.2f} to {result['speedup_p90']:.2f})"
            memory = f"{result['memory_ratio']:.2f}" if "memory_ratio" in result else "-"
            lines.append([row["setting"]["arch"], *sides, factor, memory])
        return header, lines

    def _networks(self, arch: str) -> tuple[Network, Network]:
        ours = Network(
            arch,
            self.input_size,
            self.batch_size,
            self.dtype,
            self.torch_device().type,
            autocast=self.autocast,
            lowering=self.lowering,
            compiled=self.compile,
            train=self.train,
        )
        dtype = self.against_dtype or self.dtype
        if self.against == OFFICIAL:
            return ours, official(arch, ours, dtype=dtype, compiled=self.compile_baseline)
        other = replace(ours, arch=self.against, dtype=dtype, lowering=None, compiled=self.compile_baseline)
        return ours, other


@dataclass
class TrainBenchmark(ModelBenchmark):
    """Which networks to train on images, how, and against what; a step is forward, loss, backward and AdamW."""

    kind: ClassVar[str] = "train"
    train: ClassVar[bool] = True

    autocast: bool = True
    """In half precision keep weights in float32 under autocast, rather than train weights that are in it."""


def _prepare(networks: dict[str, Network], memory: bool) -> tuple[dict[str, Callable[[], Tensor]], dict[str, int]]:
    """Steps to be timed, and the peak memory of each in bytes, where it is wanted and can be had."""
    steps: dict[str, Callable[[], Tensor]] = {}
    peaks: dict[str, int] = {}
    for name, network in networks.items():
        if network.device == "cuda":
            before = torch.cuda.memory_allocated()
            steps[name] = make_step(network)
            if memory:
                peaks[name] = cuda_peak(steps[name], before)
        else:
            if memory and is_measurable():
                (peaks[name],) = cpu_peaks([network])
            steps[name] = make_step(network)
    return steps, peaks
