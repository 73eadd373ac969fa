"""Benchmark of image sizes: throughput and peak memory against resolution, the figure that the papers show."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ..ops import LOWERINGS
from .base import MIB, Benchmark, Table, at_least_one, milliseconds, one_of, readable, rounded
from .memory import cpu_peaks, cuda_peak, is_measurable
from .networks import Network, is_ours, make_step, require_known
from .record import Row, make_row
from .timing import Step, paired, spread


@dataclass
class ScalingBenchmark(Benchmark):
    """Which models to run at which image sizes."""

    kind: ClassVar[str] = "scaling"

    arch: list[str] = field(default_factory=lambda: ["gfnet_xs", "dfformer_s18"])
    """Models to measure."""
    against: list[str] = field(default_factory=lambda: ["deit_small_patch16_224"])
    """Models beside them, of ours or of timm; they are made for each size."""
    input_sizes: list[int] = field(default_factory=lambda: [224, 448, 896, 1344])
    """Sides of the images in pixels."""
    batch_size: int = 1
    """Images in a batch, at the largest size."""
    equal_pixels: bool = False
    """Put more images in the batches of smaller sizes, so that every batch has about as many pixels."""
    rounds: int = 3
    """Samples of each model at each size; the models take turns."""
    warmup: int = 2
    """Calls that are not counted; at least 2."""
    lowering: str | None = None
    """Our models use this lowering; by default the ones that the rules choose."""
    compile: bool = False
    """Compile every model with torch.compile."""
    autocast: bool = False
    """In half precision keep weights in float32 under autocast, rather than have weights and images in it."""
    memory: bool = True
    """Measure peak memory; on a CPU in a process of its own for each size."""

    def check(self) -> None:
        """Refuse settings outside their range."""
        super().check()
        for flag, names in {"--arch": self.arch, "--against": self.against}.items():
            for name in names:
                require_known(flag, name)
        for size in self.input_sizes:
            at_least_one("input_sizes", size)
        at_least_one("batch_size", self.batch_size)
        if self.lowering is not None:
            one_of("--lowering", self.lowering, LOWERINGS)

    def cases(self) -> Sequence[int]:
        """The sizes, the smallest first."""
        return sorted(self.input_sizes)

    def measure(self, case: int) -> Iterator[Row]:
        """Time all models at one size; a model that the GPU has no memory for is reported so."""
        torch.compiler.reset()
        device = self.torch_device()
        networks = {name: self._network(name, case) for name in [*self.arch, *self.against]}
        steps, peaks = self._prepare(networks)
        samples = paired(steps, device, rounds=self.rounds, warmup=self.warmup)
        for name, network in networks.items():
            result: dict[str, Any] = {"out_of_memory": True}
            if name in samples:
                seconds = spread(samples[name])
                pixels = network.batch * case**2
                result = {
                    "images_per_second": rounded(network.batch / seconds.median),
                    **milliseconds(seconds),
                    "ns_per_pixel": rounded(1e9 * seconds.median / pixels),
                }
            if name in peaks:
                result["peak_mib"] = rounded(peaks[name] / MIB)
            setting = {
                "arch": name,
                "input_size": case,
                "batch_size": network.batch,
                "equal_pixels": self.equal_pixels,
                **network.describe(),
                "rounds": self.rounds,
            }
            yield make_row("scaling", setting, result, dtype=self.dtype, device=device.type)

    def summarise(self, rows: Sequence[Row]) -> list[Row]:
        """How the time for a pixel at the largest size compares with that at the smallest, for each model."""
        first, last = self.cases()[0], self.cases()[-1]
        times = {
            (row["setting"]["arch"], row["setting"]["input_size"]): row["result"].get("ns_per_pixel") for row in rows
        }
        summary = []
        for name in [*self.arch, *self.against]:
            small, large = times.get((name, first)), times.get((name, last))
            if small and large and first < last:
                setting = {"arch": name, "input_sizes": [first, last], "equal_pixels": self.equal_pixels}
                result = {"time_per_pixel_ratio": rounded(large / small)}
                what = f"scaling: time per pixel at {last} over that at {first}"
                summary.append(make_row(what, setting, result, dtype=self.dtype, device=self.torch_device().type))
        return summary

    def table(self, rows: Sequence[Row]) -> Table:
        """Throughput, time for a pixel and memory, a line a model and size; the summary's below."""
        header = ["model", "size", "images/s", "ns per pixel", "MiB"]
        lines = []
        for row in rows:
            setting, result = row["setting"], row["result"]
            if "time_per_pixel_ratio" in result:
                first, last = setting["input_sizes"]
                lines.append(
                    [setting["arch"], f"{last} over {first}", "", f"x {result['time_per_pixel_ratio']:.2f}", ""]
                )
                continue
            size = str(setting["input_size"])
            if "out_of_memory" in result:
                lines.append([setting["arch"], size, "out of memory", "", ""])
                continue
            memory = readable(result["peak_mib"]) if "peak_mib" in result else "-"
            times = [readable(result["images_per_second"]), readable(result["ns_per_pixel"])]
            lines.append([setting["arch"], size, *times, memory])
        return header, lines

    def _network(self, name: str, size: int) -> Network:
        largest = self.cases()[-1]
        batch = round(self.batch_size * (largest / size) ** 2) if self.equal_pixels else self.batch_size
        return Network(
            name,
            size,
            batch,
            self.dtype,
            self.torch_device().type,
            autocast=self.autocast,
            lowering=self.lowering if is_ours(name) else None,
            compiled=self.compile,
        )

    def _prepare(self, networks: dict[str, Network]) -> tuple[dict[str, Step], dict[str, int]]:
        """Steps to be timed, and the peak memory of each in bytes, where it is wanted and can be had."""
        if self.torch_device().type == "cpu":
            steps: dict[str, Step] = {name: make_step(network) for name, network in networks.items()}
            measured = cpu_peaks(list(networks.values())) if self.memory and is_measurable() else []
            return steps, dict(zip(networks, measured, strict=False))
        steps, peaks = {}, {}
        for name, network in networks.items():
            before = torch.cuda.memory_allocated()
            try:
                step = make_step(network)
                # Also without a figure wanted: it tells whether there is memory for the step.
                peak = cuda_peak(step, before)
            except torch.cuda.OutOfMemoryError:
                continue
            steps[name] = step
            if self.memory:
                peaks[name] = peak
        return steps, peaks
