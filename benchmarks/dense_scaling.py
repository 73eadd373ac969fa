"""A training step of RetinaNet at growing image sizes: spectral, attention and convolutional backbones in turn.

    python benchmarks/dense_scaling.py [--sizes 256 512 768 1024] [--rounds 3]

The first three backbones are one network with other mixers. Seconds are medians of steps in turns (A B C A B C), peak
memory is measured in a process of its own for each. Rows and a picture go to benchmarks/results/dense_scaling.*.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure

from freqformer.bench import append_rows, make_row
from freqformer.bench.memory import forgetful_environment, step_peak
from freqformer.bench.record import Row
from freqformer.bench.timing import paired, spread
from freqformer.dense import create_detector

ROWS = Path(__file__).parent / "results" / "dense_scaling.json"
ARMS = {
    "spectral": ("freqformer_h_n", {"spectral_stages": 4}),
    "2 spectral, 2 attention": ("freqformer_h_n", {"spectral_stages": 2}),
    "attention": ("freqformer_h_n", {"spectral_stages": 0}),
    "convolutional": ("regnetx_002", {}),
}


def main() -> None:
    """Measure, write down and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 768, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak-of", nargs=2, metavar=("ARM", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        arm, size = args.peak_of
        print(json.dumps(step_peak(make_step(arm, int(size)))))
        return
    rows: list[Row] = []
    for size in args.sizes:
        steps = {arm: make_step(arm, size) for arm in ARMS}
        samples = paired(steps, torch.device("cpu"), rounds=args.rounds, warmup=2)
        for arm, seconds in samples.items():
            line = [sys.executable, __file__, "--peak-of", arm, str(size)]
            done = subprocess.run(line, env=forgetful_environment(), stdout=subprocess.PIPE, text=True, check=True)
            result = {
                "step_seconds": spread(seconds).median,
                "of_attention": spread([a / b for a, b in zip(seconds, samples["attention"], strict=True)]).median,
                "peak_bytes": int(done.stdout.splitlines()[-1]),
            }
            print(size, arm, result, flush=True)
            rows.append(make_row("dense scaling", {"arm": arm, "size": size}, result, dtype="bfloat16", device="cpu"))
    append_rows(ROWS, rows)
    draw(rows, ROWS.with_suffix(".png"))


def make_step(arm: str, size: int) -> Callable[[], object]:
    """A training step of a detector on one square image with twenty boxes."""
    arch, arguments = ARMS[arm]
    torch.manual_seed(0)
    model = create_detector(
        arch, ["one"], size=(size, size), fpn_channels=64, head_norm="group", model_args=dict(arguments)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
    corners = torch.rand(20, 2) * (size - 64)
    target = {"boxes": torch.cat([corners, corners + 48], dim=1), "labels": torch.zeros(20, dtype=torch.int64)}

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            losses = model([image], [target])
        sum(losses.values()).backward()
        optimizer.step()

    return step


def draw(rows: list[Row], path: Path) -> None:
    """Draw time and memory against the side of the image."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axes, (name, title, unit) in zip(
        figure.subplots(1, 2),
        (("step_seconds", "seconds a step", 1), ("peak_bytes", "peak memory, MiB", 2**20)),
        strict=True,
    ):
        for arm in ARMS:
            points = [
                (row["setting"]["size"], row["result"][name] / unit) for row in rows if row["setting"]["arm"] == arm
            ]
            axes.plot(*zip(*points, strict=True), marker="o", label=arm)
        axes.set(title=title, xlabel="side of the image, pixels", xscale="log", yscale="log")
        axes.set_xticks(sorted({row["setting"]["size"] for row in rows}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
