"""Paired timing: candidates take turns, so that whatever else the machine does meets all of them alike."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

# The least that one sample takes, so that clocks and launches do not blur it: a fast step is repeated within.
_SAMPLE_SECONDS = {"cpu": 0.005, "cuda": 0.01}
# Larger than every cache between the processor and its memory.
_COPIED_BYTES = {"cpu": 2**28, "cuda": 2**30}

Step = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """The median of samples, and where the middle four fifths of them lie."""

    median: float
    p10: float
    p90: float


def spread(samples: Sequence[float]) -> Spread:
    """Median, tenth and ninetieth percentile, interpolated between samples."""
    middle, low, high = torch.tensor(samples, dtype=torch.float64).quantile(
        torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
    )
    return Spread(middle.item(), low.item(), high.item())


def paired(steps: Mapping[str, Step], device: torch.device, *, rounds: int, warmup: int) -> dict[str, list[float]]:
    """Time steps in turns: A B A B ...

    Args:
        steps: what to time, by name.
        device: where they compute; each sample ends when it has finished.
        rounds: samples of each.
        warmup: calls of each that are not counted, two or more; the last tells how often a sample repeats the step.

    Returns:
        Seconds per call by name, one of each for every round.
    """
    repeats: dict[str, int] = {}
    for name, step in steps.items():
        for _ in range(warmup - 1):
            step()
        repeats[name] = math.ceil(_SAMPLE_SECONDS[device.type] / _seconds(step, device, 1))
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            samples[name].append(_seconds(step, device, repeats[name]))
    return samples


def _seconds(step: Step, device: torch.device, repeats: int) -> float:
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronize(device)
    return (time.perf_counter() - started) / repeats


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU has when the call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def speedup(ours: Sequence[float], against: Sequence[float]) -> Spread:
    """How many times as fast ours is: the spread of the rounds' own ratios."""
    return spread([b / a for a, b in zip(ours, against, strict=True)])


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of positive numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, that a copy of a large tensor moves on a device."""
    x = torch.ones(_COPIED_BYTES[device.type] // 4, device=device)
    # Into memory that is there already: a CPU would spend its time on making new pages.
    target = torch.empty_like(x)
    samples = paired({"copy": lambda: target.copy_(x)}, device, rounds=7, warmup=2)["copy"]
    return 2 * x.numel() * x.element_size() / spread(samples).median


def graphed(step: Step) -> Step:
    """A step recorded as a CUDA graph: calling it replays the kernels without launching each from Python."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
