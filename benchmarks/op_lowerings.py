"""Time the lowerings of global_filter, forward and backward, against each other in one run.

python benchmarks/op_lowerings.py
"""

import statistics
import time

import torch
from record import record
from rich.progress import track

from freqformer.ops import global_filter

GRIDS = [
    (7, 7, 512),
    (8, 8, 160),
    (14, 14, 384),
    (28, 28, 192),
    (32, 32, 128),
    (40, 40, 96),
    (56, 56, 96),
    (64, 64, 64),
]
DTYPES = [torch.float32, torch.bfloat16]
BATCH, ROUNDS = 16, 15


def seconds(x: torch.Tensor, weight: torch.Tensor, lowering: str) -> float:
    started = time.perf_counter()
    global_filter(x, weight, lowering=lowering).backward(torch.ones_like(x))
    return time.perf_counter() - started


def main() -> None:
    rows = []
    for height, width, channels in track(GRIDS, "timing"):
        for dtype in DTYPES:
            x = torch.randn(BATCH, height, width, channels, dtype=dtype, requires_grad=True)
            weight = torch.randn(height, width // 2 + 1, channels, 2, requires_grad=True)
            times: dict[str, list[float]] = {"fft": [], "dft": []}
            for name in times:
                seconds(x, weight, name)
            for _ in range(ROUNDS):
                for name, kept in times.items():
                    kept.append(seconds(x, weight, name))
            median = {name: statistics.median(kept) for name, kept in times.items()}
            rows.append(
                {
                    "x": [BATCH, height, width, channels],
                    "dtype": str(dtype).removeprefix("torch."),
                    **{f"{name}_ms": round(1000 * value, 2) for name, value in median.items()},
                    "dft_speedup": round(median["fft"] / median["dft"], 2),
                }
            )
            print(rows[-1])
    print(record("op-lowerings-cpu", rows))


if __name__ == "__main__":
    main()
