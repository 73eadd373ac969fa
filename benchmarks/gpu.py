"""One part of what is measured on a GPU; `benchmarks/gpu.sh` runs all. It needs torch, triton and timm alone.

python benchmarks/gpu.py PART --seconds 60 --output-dir benchmarks/results

Rows are kept after every case, so a part that is stopped loses little. It draws nothing, as matplotlib may be absent:

python -c "from pathlib import Path; from freqformer.bench import read_rows; from freqformer.bench.pictures import draw
draw('scaling', [r for r in read_rows(Path('scaling.json')) if 'ms' in r['result']], Path('scaling.png'))"
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from freqformer.bench import (
    Benchmark,
    Disagreement,
    ModelBenchmark,
    OpBenchmark,
    ScalingBenchmark,
    TrainBenchmark,
    append_rows,
    make_row,
    run,
)
from freqformer.bench.agreement import OPERATION, relative_error, require_agreement
from freqformer.bench.operations import official_global_filter
from freqformer.ops import dynamic_filter, global_filter

CHECKED_GRIDS = [(1, 49), (7, 7), (8, 8), (14, 14), (14, 9), (25, 34), (28, 28), (56, 56), (64, 64)]
INVERTED_GRIDS = [7, 8, 14, 15, 16, 28, 56, 64]
GRIDS = ["14", "28", "56", "64"]
NETWORKS = ["gfnet_xs", "freqformer_xs", "dfformer_s18"]

Track = Callable[[Sequence[Any]], Iterator[Any]]


def until(seconds: float, *, largest_first: bool = False) -> Track:
    """Passes on cases until the time is up, and says how many are left out."""
    started = time.monotonic()

    def track(cases: Sequence[Any]) -> Iterator[Any]:
        ordered = list(reversed(cases)) if largest_first else list(cases)
        for number, case in enumerate(ordered):
            passed = time.monotonic() - started
            if passed > seconds:
                print(f"the {seconds:.0f} s are over: {len(ordered) - number} of {len(ordered)} cases left out")
                return
            print(f"{passed:6.1f} s  {case}", flush=True)
            yield case

    return track


def show(config: Benchmark, track: Track) -> None:
    header, lines = config.table(run(config, track, picture=False))
    for line in [header, *lines]:
        print("  ".join(line))


def check(track: Track) -> None:
    """The triton lowering against the definition, output and gradients, for any weight."""
    wrong = []
    for grid in track(CHECKED_GRIDS):
        for dtype in ("float32", "bfloat16", "float16"):
            for name, ours, definition in checked(grid, getattr(torch, dtype)):
                try:
                    require_agreement(f"{name} on {grid} in {dtype}", ours, definition, OPERATION[dtype])
                except Disagreement as error:
                    wrong.append(str(error))
    if wrong:
        raise SystemExit("\n".join(wrong))


def checked(grid: tuple[int, int], dtype: torch.dtype) -> Iterator[tuple[str, list[torch.Tensor], list[torch.Tensor]]]:
    torch.manual_seed(0)
    batch, channels, filters = 3, 40, 4
    height, width = grid
    half = (height, width // 2 + 1)
    dy = torch.randn(batch, height, width, channels, device="cuda").to(dtype)
    rest = {
        "global_filter": [(*half, channels, 2)],
        "global_filter, real": [(*half, channels)],
        "global_filter, one a sample": [(batch, *half, channels, 2)],
        "dynamic_filter": [(*half, filters, 2), (batch, filters, channels)],
    }
    for name, shapes in rest.items():
        x = torch.randn(batch, height, width, channels, device="cuda").to(dtype)
        inputs = [tensor.requires_grad_() for tensor in (x, *(torch.randn(shape, device="cuda") for shape in shapes))]
        operation = dynamic_filter if name == "dynamic_filter" else global_filter
        results = []
        for lowering in ("triton", "reference"):
            y = operation(*inputs, lowering=lowering)
            results.append([y, *torch.autograd.grad(y, inputs, dy)])
        yield name, *results


def inverse(track: Track, folder: Path) -> None:
    """What torch's own 2-D inverse returns on CUDA and on a CPU for products that are no real image's spectrum."""
    for size in track(INVERTED_GRIDS):
        torch.manual_seed(0)
        x, weight = torch.randn(4, size, size, 32), torch.randn(size, size // 2 + 1, 32, 2)
        definition = global_filter(x, weight, lowering="reference")
        plain = {device: official_global_filter(x.to(device), weight.to(device)) for device in ("cuda", "cpu")}
        ours = global_filter(x.cuda(), weight.cuda(), lowering="fft")
        result = {
            "cuda_irfft2_error": relative_error(plain["cuda"].cpu(), definition),
            "cpu_irfft2_error": relative_error(plain["cpu"], definition),
            "cuda_fft_lowering_error": relative_error(ours.cpu(), definition),
        }
        print(result)
        what = "irfft2 of non-Hermitian products against the definition, relative error"
        append_rows(folder / "inverse.json", [make_row(what, {"grid": size}, result, dtype="float32", device="cuda")])


def main() -> None:
    parser = argparse.ArgumentParser(description="One part of what is measured on a GPU.")
    parts = ("check", "inverse", "global_filter", "dynamic_filter", "subquadratic", "model", "train", "scaling")
    parser.add_argument("part", choices=[*parts, "model-compiled", "train-compiled"])
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--output-dir", required=True)
    args = parser.parse_args()
    part, track = args.part, until(args.seconds)
    shared: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "output_dir": args.output_dir}
    if part == "check":
        check(track)
    elif part == "inverse":
        inverse(track, Path(args.output_dir))
    elif part in ("global_filter", "dynamic_filter"):
        # What counts in the mean are large shapes: they must not be what is left out.
        largest_first = until(args.seconds, largest_first=True)
        ours: dict[str, Any] = {"operations": [part], "lowering": "triton", "cuda_graphs": True}
        shapes: dict[str, Any] = {"grids": GRIDS, "channels": [64, 384, 768], "batch_sizes": [8, 64, 256]}
        show(OpBenchmark(**shared, **ours, **shapes), largest_first)
    elif part == "subquadratic":
        only = {"operations": ["global_filter"], "lowering": "triton", "against": "subquadratic"}
        shapes = {"grids": ["16", "28", "56", "64"], "channels": [384], "batch_sizes": [64]}
        show(OpBenchmark(**shared, **only, **shapes), track)
    elif part == "scaling":
        # The rules choose: grids of large images may be more than one kernel holds.
        sizes = [224, 448, 672, 896, 1120, 1344]
        show(ScalingBenchmark(**shared, input_sizes=sizes, batch_size=2, equal_pixels=True, rounds=5), track)
    else:
        config = ModelBenchmark if part.startswith("model") else TrainBenchmark
        compiled = part.endswith("compiled")
        show(config(**shared, arch=NETWORKS, lowering="triton", batch_size=128, compile=compiled), track)


if __name__ == "__main__":
    main()
