"""An ONNX graph in 8-bit integers, by ONNX Runtime's quantiser."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from ..onnx_model import INPUT
from .capture import quietly


def quantize(model: onnx.ModelProto, batches: Iterable[np.ndarray]) -> onnx.ModelProto:
    """Quantise convolutions and linear layers, weights by channel, activations as the images make them.

    The transforms stay in float32: rounding their constants costs several times the error of all else together.

    Args:
        model: a float32 graph with one input.
        batches: images (B, C, H, W) under the model's preprocessing.

    Returns:
        The graph with quantisers around those layers.
    """
    with quietly(), tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            target,
            _Batches(batches),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=_linear_layers(model),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(target)


class _Batches(CalibrationDataReader):
    def __init__(self, batches: Iterable[np.ndarray]) -> None:
        self.batches: Iterator[np.ndarray] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}


def _linear_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions and linear layers, which are not the only products with constants."""
    constants = {constant.name for constant in model.graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}

    def is_linear(node: onnx.NodeProto) -> bool:
        if node.op_type != "MatMul":
            return node.op_type in ("Conv", "Gemm")
        # On tokens; filters are fitted to a grid by products of matrices, which have no tokens.
        return node.input[1] in constants and ranks.get(node.output[0], 0) > 2

    return [node.name for node in model.graph.node if is_linear(node)]
