"""Benchmarks: operations, networks, training steps and image sizes against the official formulation or other networks.

It needs no extra but matplotlib for the pictures, so that it also runs where there are torch and timm alone.
"""

from .agreement import Disagreement
from .base import Benchmark, run
from .model import ModelBenchmark, TrainBenchmark
from .op import OpBenchmark
from .record import append_rows, make_row, read_rows
from .scaling import ScalingBenchmark

BENCHMARKS: dict[str, type[Benchmark]] = {
    config.kind: config for config in (OpBenchmark, ModelBenchmark, ScalingBenchmark, TrainBenchmark)
}
"""The configs by what is typed after `freqformer bench`."""

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Disagreement",
    "ModelBenchmark",
    "OpBenchmark",
    "ScalingBenchmark",
    "TrainBenchmark",
    "append_rows",
    "make_row",
    "read_rows",
    "run",
]
