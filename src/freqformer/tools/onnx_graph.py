"""From a torch.export program to an ONNX file that describes itself."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor
from torch.export import ExportedProgram

from .. import __version__
from ..errors import FreqFormerError
from ..onnx_model import INPUT
from .capture import SIDES, quietly
from .quantize import quantize

_MOST_BYTES = 2**31


def make_onnx(
    program: ExportedProgram,
    outputs: Sequence[str],
    *,
    opset: int,
    properties: Mapping[str, str],
    calibration: Sequence[Tensor] | None,
) -> onnx.ModelProto:
    """Translate a program to ONNX, its axes named batch, height and width.

    Args:
        program: a network on one tensor of images.
        outputs: names of what it returns.
        opset: version of ONNX's operators.
        properties: the file's metadata.
        calibration: batches of images to quantise it by; None leaves it as it is.

    Returns:
        The model.

    Raises:
        FreqFormerError: more than one ONNX file holds, or operators that this opset lacks.
    """
    if sum(value.nbytes for value in program.state_dict.values()) >= _MOST_BYTES:
        raise FreqFormerError("the weights are larger than the 2 GB of one ONNX file: use --format torch-export")
    with quietly():
        translated = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=outputs, opset_version=opset, verbose=False
        )
    assert translated is not None
    model = translated.model_proto
    _name_axes(model)
    if calibration is not None:
        model = quantize(model, [batch.numpy() for batch in calibration])
    model.producer_name, model.producer_version = "freqformer", __version__
    onnx.helper.set_model_props(model, dict(properties))
    return model


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a model to one file."""
    onnx.save(model, path)


def _name_axes(model: onnx.ModelProto) -> None:
    (image,) = model.graph.input
    axes = image.type.tensor_type.shape.dim
    names = {axes[place].dim_param: name for place, name in SIDES.items() if axes[place].dim_param}
    if not names:
        return
    symbols = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = symbols.sub(lambda match: names[match[1]], axis.dim_param)
