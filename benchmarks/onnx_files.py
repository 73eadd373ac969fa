"""Exported files in ONNX Runtime against PyTorch's official formulation, and against its own ONNX export.

python benchmarks/onnx_files.py --calibration FOLDER_OF_IMAGES
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from rich.console import Console

import freqformer
from freqformer.bench import append_rows, make_row
from freqformer.bench.operations import official_dynamic_filter, official_global_filter
from freqformer.bench.timing import paired, speedup, spread
from freqformer.ops import use_lowering
from freqformer.tools.capture import quietly

ROWS = Path(__file__).parent / "results" / "onnx.json"


def export_official(model: torch.nn.Module, path: Path) -> bool:
    """The official codes' formulation through torch's exporter, with DFT operators; whether it can be exported.

    A dynamic filter's mixture of complex filters cannot.
    """
    mixers = "freqformer.layers.mixers"
    with (
        quietly(),
        patch(f"{mixers}.global_filter", official_global_filter),
        patch(f"{mixers}.dynamic_filter", official_dynamic_filter),
    ):
        images = torch.zeros(2, 3, 224, 224)
        batch = {0: torch.export.Dim.DYNAMIC}
        try:
            torch.onnx.export(
                model, (images,), path, dynamo=True, dynamic_shapes=(batch,), input_names=["image"], verbose=False
            )
        except torch.onnx.OnnxExporterError:
            return False
    return True


def runner(path: Path, images: torch.Tensor) -> Callable[[], object]:
    from freqformer.onnx_model import open_session

    session, array = open_session(path), images.numpy()
    return lambda: session.run(None, {"image": array})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="+", default=["gfnet_xs", "freqformer_xs", "dfformer_s18"])
    parser.add_argument("--calibration", required=True, help="folder of images for int8")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    screen = Console(stderr=True)
    images = torch.randn(args.batch_size, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for arch in args.arch:
        torch.manual_seed(0)
        model = freqformer.create_model(arch).eval()
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder) / f"{name}.onnx" for name in ("official", "float32", "any_size", "int8")}
            with screen.status(f"exporting {arch}"):
                if not export_official(model, files["official"]):
                    del files["official"]
                freqformer.export(model, files["float32"])
                freqformer.export(model, files["any_size"], dynamic_size=True)
                freqformer.export(model, files["int8"], dtype="int8", calibration=args.calibration)
            steps = {name: runner(path, images) for name, path in files.items()}

            def eager(model: torch.nn.Module = model) -> torch.Tensor:
                with torch.inference_mode(), use_lowering("fft"):
                    return model(images)

            steps["eager"] = eager
            with screen.status(f"timing {arch}"):
                samples = paired(steps, torch.device("cpu"), rounds=args.rounds, warmup=2)
        result = {f"{name}_ms": round(1e3 * spread(kept).median, 1) for name, kept in samples.items()}
        for name in ("float32", "any_size", "int8"):
            for against in samples.keys() & {"eager", "official"}:
                result[f"{name}_over_{against}"] = round(speedup(samples[name], samples[against]).median, 2)
        result["int8_over_float32"] = round(speedup(samples["int8"], samples["float32"]).median, 2)
        print(arch, result)
        setting = {"arch": arch, "input_size": 224, "batch_size": args.batch_size, "rounds": args.rounds}
        append_rows(ROWS, [make_row("onnx", setting, result, dtype="float32", device="cpu")])


if __name__ == "__main__":
    main()
