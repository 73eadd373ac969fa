"""Benchmark of the operations alone: ours against the official formulation, over grids, channels and batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import FreqFormerError
from ..ops import LOWERINGS
from .agreement import OPERATION, require_agreement
from .base import MIB, Benchmark, Table, at_least_one, milliseconds, one_of, ratio, readable, rounded, torch_dtype
from .memory import cuda_peak
from .networks import OFFICIAL
from .operations import (
    OPERATIONS,
    SUBQUADRATIC,
    Function,
    baseline,
    candidate,
    make_inputs,
    make_step,
    subquadratic,
    subquadratic_inputs,
)
from .record import Row, make_row
from .timing import Step, copy_bandwidth, geometric_mean, graphed, paired, speedup, spread

PASSES = ("forward", "forward+backward")
LARGE = 32 * MIB
"""From this size of x on the summary counts a shape: smaller ones fit in a GPU's cache and wait for launches."""


@dataclass
class OpBenchmark(Benchmark):
    """Which operations to time, on which shapes, and against what."""

    kind: ClassVar[str] = "op"

    operations: list[str] = field(default_factory=lambda: list(OPERATIONS))
    """global_filter and dynamic_filter, or one of them."""
    passes: list[str] = field(default_factory=lambda: list(PASSES))
    """forward and forward+backward, or one of them; the latter takes the gradients of all inputs."""
    grids: list[str] = field(default_factory=lambda: ["7", "14", "28", "56", "64"])
    """Grids in tokens, such as 14, or 25x34 for other than squares."""
    channels: list[int] = field(default_factory=lambda: [192])
    """Numbers of channels."""
    batch_sizes: list[int] = field(default_factory=lambda: [16])
    """Images in a batch."""
    lowering: str | None = None
    """Ours is this lowering; by default the one that the rules choose."""
    against: str = OFFICIAL
    """The official formulation, another lowering, or subquadratic, which is NVIDIA's fused 2-D FFT convolution."""
    compile: bool = False
    """Compile ours with torch.compile."""
    compile_baseline: bool = False
    """Compile what ours is compared with."""
    cuda_graphs: bool = False
    """Time shapes below 32 MiB also as CUDA graphs."""

    def check(self) -> None:
        """Refuse settings outside their range."""
        super().check()
        for operation in self.operations:
            one_of("--operations", operation, OPERATIONS)
        for name in self.passes:
            one_of("--passes", name, PASSES)
        one_of("--against", self.against, (OFFICIAL, *LOWERINGS, SUBQUADRATIC))
        if self.lowering is not None:
            one_of("--lowering", self.lowering, LOWERINGS)
        for number in self.channels:
            at_least_one("channels", number)
        for number in self.batch_sizes:
            at_least_one("batch_sizes", number)
        for grid in self.grids:
            _sides(grid)
        if self.cuda_graphs and self.torch_device().type != "cuda":
            raise FreqFormerError("--cuda-graphs needs a GPU: leave it out")
        if self.against == SUBQUADRATIC and self.operations != ["global_filter"]:
            raise FreqFormerError("--against subquadratic has no dynamic_filter: add --operations global_filter")

    def cases(self) -> Sequence[tuple[str, tuple[int, int, int, int]]]:
        """Operation and shape (B, H, W, C) of x, the smallest x first."""
        shapes = [(b, *_sides(grid), c) for grid, b, c in product(self.grids, self.batch_sizes, self.channels)]
        shapes.sort(key=lambda shape: shape[0] * shape[1] * shape[2] * shape[3])
        return list(product(self.operations, shapes))

    @cached_property
    def bandwidth(self) -> float:
        """Bytes per second that a copy moves on the device, measured once."""
        return copy_bandwidth(self.torch_device())

    def measure(self, case: tuple[str, tuple[int, int, int, int]]) -> Iterator[Row]:
        """Check and time one operation on one shape."""
        operation, shape = case
        torch.compiler.reset()
        inputs = make_inputs(operation, shape, torch_dtype(self.dtype), self.torch_device())
        ours = candidate(operation, self.lowering)
        ours = torch.compile(ours) if self.compile else ours
        found = self._against(operation, inputs)
        settings = {name: self._setting(operation, name, shape) for name in self.passes}
        if isinstance(found, str):
            yield from (self._row(setting, {"skipped": found}) for setting in settings.values())
            return
        against, their_inputs = found
        steps: dict[str, dict[str, Step]] = {}
        for name in self.passes:
            backward = name != "forward"
            our_step = make_step(ours, inputs, backward=backward)
            their_step = make_step(against, their_inputs, backward=backward)
            steps[name] = {"ours": our_step, "against": their_step}
            if self.against != SUBQUADRATIC:
                what = f"{operation} {name} on {'x'.join(map(str, shape))} in {self.dtype}"
                require_agreement(what, our_step(), their_step(), OPERATION[self.dtype])
        for name, setting in settings.items():
            result = self._time(steps[name], inputs[0], name)
            if self.torch_device().type == "cuda":
                for key, step in steps[name].items():
                    # Beyond the inputs.
                    result[key]["peak_mib"] = rounded(cuda_peak(step, torch.cuda.memory_allocated()) / MIB)
            yield self._row(setting, result)
            if self.cuda_graphs and _bytes(inputs[0]) < LARGE:
                replays = {key: graphed(step) for key, step in steps[name].items()}
                yield self._row({**setting, "cuda_graph": True}, self._time(replays, inputs[0], name))

    def summarise(self, rows: Sequence[Row]) -> list[Row]:
        """The geometric mean of the speedups over shapes whose x is large, for each operation and pass."""
        summary = []
        for operation, name in product(self.operations, self.passes):
            speedups = [
                row["result"]["speedup"]
                for row in rows
                if (row["setting"]["operation"], row["setting"]["pass"]) == (operation, name)
                and row["result"].get("x_mib", 0) * MIB >= LARGE
            ]
            if speedups:
                setting = {"operation": operation, "pass": name, "lowering": self.lowering, "against": self.against}
                result = {"shapes": len(speedups), "speedup_geomean": rounded(geometric_mean(speedups))}
                what = f"op: geometric mean of {operation} {name} over x of 32 MiB or more"
                summary.append(make_row(what, setting, result, dtype=self.dtype, device=self.torch_device().type))
        return summary

    def table(self, rows: Sequence[Row]) -> Table:
        """Times, speedup and share of the copy bandwidth, a line a row; the summary's below."""
        header = ["operation", "pass", "x", "ours ms", f"{self.against} ms", "speedup", "of copy bandwidth"]
        lines = []
        for row in rows:
            setting, result = row["setting"], row["result"]
            start = [setting["operation"], setting["pass"]]
            if "speedup_geomean" in result:
                mean = f"{result['speedup_geomean']:.2f}"
                lines.append([*start, f"geometric mean of {result['shapes']} of 32 MiB or more", "", "", mean, ""])
                continue
            shape = "x".join(map(str, setting["x"])) + (" CUDA graph" if setting["cuda_graph"] else "")
            if "skipped" in result:
                lines.append([*start, shape, f"left out: {result['skipped']}", "", "", ""])
                continue
            times = [readable(result[side]["ms"]) for side in ("ours", "against")]
            factor = f"{result['speedup']:.2f} ({result['speedup_p10']:.2f} to {result['speedup_p90']:.2f})"
            share = f"{result['copy_share']:.0%}" if "copy_share" in result else ""
            lines.append([*start, shape, *times, factor, share])
        return header, lines

    def _setting(self, operation: str, name: str, shape: Sequence[int]) -> dict[str, Any]:
        return {
            "operation": operation,
            "pass": name,
            "x": list(shape),
            "lowering": self.lowering,
            "against": self.against,
            "compiled": self.compile,
            "against_compiled": self.compile_baseline,
            "cuda_graph": False,
            "rounds": self.rounds,
        }

    def _against(self, operation: str, inputs: list[Tensor]) -> tuple[Function, list[Tensor]] | str:
        """The baseline and its inputs, or why there is none."""
        if self.against == SUBQUADRATIC:
            found = subquadratic()
            return found if isinstance(found, str) else (found, subquadratic_inputs(inputs))
        function = baseline(operation, self.against)
        return torch.compile(function) if self.compile_baseline else function, inputs

    def _time(self, steps: dict[str, Step], x: Tensor, name: str) -> dict[str, Any]:
        device = self.torch_device()
        samples = paired(steps, device, rounds=self.rounds, warmup=self.warmup)
        seconds = {key: spread(kept) for key, kept in samples.items()}
        result: dict[str, Any] = {key: milliseconds(value) for key, value in seconds.items()}
        result |= ratio(speedup(samples["ours"], samples["against"]))
        result["x_mib"] = _bytes(x) / MIB
        if name == "forward":
            result["copy_gb_per_s"] = rounded(self.bandwidth / 1e9)
            # The least that must move: x once in, y once out.
            result["copy_share"] = rounded(2 * _bytes(x) / seconds["ours"].median / self.bandwidth)
        return result

    def _row(self, setting: dict[str, Any], result: dict[str, Any]) -> Row:
        return make_row("op", setting, result, dtype=self.dtype, device=self.torch_device().type)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _sides(grid: str) -> tuple[int, int]:
    """Height and width of a grid written 14 or 25x34."""
    sides = grid.lower().split("x")
    if not (len(sides) in (1, 2) and all(side.isdecimal() and int(side) for side in sides)):
        raise FreqFormerError(f"--grids does not take {grid!r}: write 14, or 25x34")
    return int(sides[0]), int(sides[-1])
