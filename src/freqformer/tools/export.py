"""Models as files that other programs run: ONNX, and torch.export's own format."""

import json
import math
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.export import ExportedProgram

from .. import __version__
from ..adapters import fold_all
from ..checkpoints import write_whole
from ..data import decode
from ..errors import CheckFailed, FreqFormerError
from ..factory import create_model, describe_model, load_described
from ..models import SpectralNet
from ..onnx_model import DESCRIPTION, INPUT, OUTPUT, open_session
from ..tasks import model_transform
from .capture import capture, quietly
from .predict import find_images

FORMATS = {"onnx": ".onnx", "torch-export": ".pt2"}
"""Formats, and how their files' names end."""
# The largest difference from PyTorch in float32 that passes, as a part of the largest value.
_BOUNDS = {"float32": 1e-4, "float16": 2e-2, "int8": 0.5}
# ONNX before 18 lacks operators that the translation needs, and ONNX Runtime's newest are yet to come.
_OPSETS = range(18, 24)
_MOST_CALIBRATION_IMAGES = 256
_CALIBRATION_BATCH = 8

Images = Tensor
Run = Callable[[Images], list[Tensor]]


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with PyTorch in float32."""

    path: Path
    architecture: str
    dtype: str
    outputs: list[str]
    megabytes: float
    checked: list[tuple[int, ...]]
    """Shapes of the images that were compared."""
    max_error: float
    """Largest difference of an output."""
    relative_error: float
    """The same as a part of the largest output; what must stay in bounds."""
    top1_agreement: float | None
    """Share of the calibration images whose most probable class is PyTorch's; int8 classifiers alone."""

    def __str__(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.checked)
        agreement = "" if self.top1_agreement is None else f", top-1 agrees on {self.top1_agreement:.1%}"
        return (
            f"{self.path}: {self.architecture} in {self.dtype}, {self.megabytes:.1f} MB, {INPUT} -> "
            f"{', '.join(self.outputs)}\nchecked against PyTorch on {shapes}: largest error {self.max_error:.2g}, "
            f"relative {self.relative_error:.2g}{agreement}"
        )


def export(
    source: SpectralNet | str | Path | None,
    target: str | Path,
    *,
    arch: str | None = None,
    format: str = "onnx",
    input_size: int | tuple[int, int] | None = None,
    dynamic_size: bool = False,
    opset: int = 20,
    dtype: str = "float32",
    calibration: str | Path | None = None,
    features: bool = False,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> ExportReport:
    """Write a model as a file that needs none of this package, and compare what it computes with the model.

    The batch is any. Images come in, and logits or features go out, in float32, whatever the file computes in.

    Args:
        source: a model, or what `freqformer.load_model` reads; None takes fresh weights of ``arch``.
        target: the file to write, ``.onnx`` or ``.pt2``.
        arch: the model's name, where the source does not say it.
        format: ``"onnx"`` or ``"torch-export"``.
        input_size: image side in pixels, or (H, W); by default the model's.
        dynamic_size: let height and width be any.
        opset: version of ONNX's operators, 18 to 23.
        dtype: ``"float32"``, ``"float16"`` or ``"int8"`` (ONNX alone).
        calibration: a folder of images that show int8 the range of every activation.
        features: export the feature maps of every stage, ``reduction_4`` ..., in place of logits.
        overwrite: whether an existing target may be replaced.
        progress: called with each step's name.

    Returns:
        What was written and how far it is from PyTorch.

    Raises:
        FreqFormerError: wrong arguments, an unusable source, or an existing target.
        CheckFailed: the file does not compute what the model does; it is kept beside the target.
    """
    target = Path(target)
    _require(target, format, opset, dtype, calibration, features, overwrite)
    model, description = _load(source, arch)
    if input_size is not None:
        if min(to_2tuple(input_size)) < 1:
            raise FreqFormerError(f"--input-size must be at least 1, not {input_size}")
        preprocessing = {"input_size": (model.pretrained_cfg["input_size"][0], *to_2tuple(input_size))}
        model.pretrained_cfg = {**model.pretrained_cfg, **preprocessing}
        description = {**description, "pretrained_cfg": {**description["pretrained_cfg"], **preprocessing}}
    network, outputs = _network(model, features)
    channels, *size = model.pretrained_cfg["input_size"]
    batches = None if calibration is None else _calibration(model, calibration)

    progress("tracing")
    traced = _Half(network) if dtype == "float16" else network
    program = capture(traced.eval(), (size[0], size[1]), channels, dynamic_size=dynamic_size)
    properties = {
        DESCRIPTION: json.dumps(description),
        "freqformer": __version__,
        "export": json.dumps({"dtype": dtype, "dynamic_size": dynamic_size, "features": features}),
    }
    if format == "onnx":
        from .onnx_graph import make_onnx, save_onnx

        progress("translating to ONNX")
        graph = make_onnx(program, outputs, opset=opset, properties=properties, calibration=batches)
    images = batches or _check_images(channels, (size[0], size[1]), dynamic_size)
    report: list[ExportReport] = []

    def write(aside: Path) -> None:
        progress("writing")
        if format == "onnx":
            save_onnx(graph, aside)
        else:
            _save_program(program, aside, properties)
        progress("checking")
        run = _onnx_runner(aside) if format == "onnx" else _program_runner(aside)
        errors = _compare(run, network, images)
        agreement = errors[2] if batches is not None and not features else None
        name, megabytes = description["architecture"], aside.stat().st_size / 1e6
        shapes = [tuple(batch.shape) for batch in images]
        report.append(
            ExportReport(target, name, dtype, outputs, megabytes, [*dict.fromkeys(shapes)], *errors[:2], agreement)
        )
        if not errors[1] <= _BOUNDS[dtype]:
            failed = target.with_name(f"{target.stem}.failed{target.suffix}")
            os.replace(aside, failed)
            raise CheckFailed(
                f"the file differs from PyTorch by {errors[0]:.2g} (relative {errors[1]:.2g}, at most "
                f"{_BOUNDS[dtype]:g} passes): it is kept as {failed}"
            )

    write_whole(target, write)
    return report[0]


def _require(
    target: Path,
    format: str,
    opset: int,
    dtype: str,
    calibration: str | Path | None,
    features: bool,
    overwrite: bool,
) -> None:
    if format not in FORMATS:
        raise FreqFormerError(f"there is no format {format!r}: choose one of {', '.join(FORMATS)}")
    if dtype not in _BOUNDS:
        raise FreqFormerError(f"there is no dtype {dtype!r}: choose one of {', '.join(_BOUNDS)}")
    if opset not in _OPSETS:
        raise FreqFormerError(f"--opset must be between {_OPSETS[0]} and {_OPSETS[-1]}, not {opset}")
    if dtype == "int8" and format != "onnx":
        raise FreqFormerError("int8 is made by ONNX Runtime's quantiser: use --format onnx")
    if (dtype == "int8") != (calibration is not None):
        raise FreqFormerError("--dtype int8 and --calibration FOLDER need each other")
    if target.suffix != FORMATS[format]:
        raise FreqFormerError(f"{target} must be a {FORMATS[format]} file for --format {format}")
    if target.exists() and not overwrite:
        raise FreqFormerError(f"{target} exists: name another file, or pass --overwrite")
    if not target.parent.is_dir():
        raise FreqFormerError(f"there is no folder {target.parent}")


def _load(source: SpectralNet | str | Path | None, arch: str | None) -> tuple[SpectralNet, dict[str, Any]]:
    """A model in evaluation mode that is ours alone, and its description."""
    if source is None:
        if arch is None:
            raise FreqFormerError("say what to export: --model-path a checkpoint, or --arch a model's name")
        source = create_model(arch)
    if isinstance(source, SpectralNet):
        description = describe_model(source, {}, source.pretrained_cfg.get("label_names"))
        return deepcopy(source).cpu().float().eval(), description
    model, description = load_described(source, arch=arch)
    # A file is for inference: adapters that are fixed linear maps go into the weights, or become one filter.
    fold_all(model)
    return model.float(), description


class _Features(nn.Module):
    """Images to the last feature map of each reduction, (B, C, H, W)."""

    def __init__(self, model: SpectralNet, indices: list[int]) -> None:
        super().__init__()
        self.model, self.indices = model, indices

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.forward_intermediates(image, self.indices, intermediates_only=True))


class _Half(nn.Module):
    """A network with weights and activations in half precision, between images and outputs in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = deepcopy(network).half()

    def forward(self, image: Tensor) -> Any:
        outputs = self.network(image.half())
        return tuple(o.float() for o in outputs) if isinstance(outputs, tuple) else outputs.float()


def _network(model: SpectralNet, features: bool) -> tuple[nn.Module, list[str]]:
    """What to export, and the names of its outputs."""
    if not features:
        if model.num_classes == 0:
            raise FreqFormerError("the model has no classifier: export its feature maps with --features")
        return model, [OUTPUT]
    last = {info["reduction"]: index for index, info in enumerate(model.feature_info)}
    return _Features(model, list(last.values())), [f"reduction_{reduction}" for reduction in last]


def _calibration(model: SpectralNet, folder: str | Path) -> list[Images]:
    """Batches of a folder's images, evenly taken where there are many."""
    paths = list(find_images([folder]))
    paths = paths[:: -(-len(paths) // _MOST_CALIBRATION_IMAGES)]
    transform = model_transform(model)
    return [
        torch.stack([transform(decode(path, str(path))) for path in batch])
        for batch in _batched(iter(paths), _CALIBRATION_BATCH)
    ]


def _batched(paths: Iterator[Path], size: int) -> Iterator[list[Path]]:
    while batch := list(islice(paths, size)):
        yield batch


def _check_images(channels: int, size: tuple[int, int], dynamic_size: bool) -> list[Images]:
    """Noise in several batch sizes and, where the file takes any, image sizes that tracing has not seen."""
    height, width = size
    shapes = [(1, height, width), (3, height, width)]
    if dynamic_size:
        shapes += [(1, height + height // 2 + 1, width), (2, height // 2 + 1, width + 3)]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, channels, *sides, generator=generator) for batch, *sides in shapes]


def _save_program(program: ExportedProgram, path: Path, properties: dict[str, str]) -> None:
    with quietly(), path.open("wb") as file:
        torch.export.save(program, file, extra_files=properties)


def _onnx_runner(path: Path) -> Run:
    session = open_session(path)
    return lambda images: [torch.from_numpy(output) for output in session.run(None, {INPUT: images.numpy()})]


def _program_runner(path: Path) -> Run:
    with quietly(), path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda images: _listed(module(images))


def _listed(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


@torch.inference_mode()
def _compare(run: Run, network: nn.Module, batches: list[Images]) -> tuple[float, float, float]:
    """Largest difference from the network, the same as a part of the largest value, and how often argmax agrees."""
    difference = relative = 0.0
    agree = images = 0
    for batch in batches:
        for ours, theirs in zip(_listed(network(batch)), run(batch), strict=True):
            if ours.shape != theirs.shape:
                raise CheckFailed(f"the file returns {tuple(theirs.shape)} where PyTorch returns {tuple(ours.shape)}")
            error, largest = float((ours - theirs).abs().max()), float(ours.abs().max())
            if not math.isfinite(error):
                error = math.inf
            difference = max(difference, error)
            relative = max(relative, error / largest if 0 < largest < math.inf else error)
            agree += int((ours.flatten(1).argmax(1) == theirs.flatten(1).argmax(1)).sum())
            images += len(batch)
    return difference, relative, agree / images
