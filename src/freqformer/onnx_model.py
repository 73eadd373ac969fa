"""An exported ONNX file as a classifier, run by ONNX Runtime."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import FreqFormerError

# The names of an exported file's input, of a classifier's output, and of the metadata that describe both.
INPUT = "image"
OUTPUT = "logits"
DESCRIPTION = "config"


class OnnxModel(nn.Module):
    """A classifier in an ONNX file that ``freqformer export`` wrote, with the preprocessing it names.

    Args:
        path: the ``.onnx`` file.

    Attributes:
        pretrained_cfg: the model's preprocessing, and ``label_names`` where known.
        num_classes: classes.

    Raises:
        FreqFormerError: no such file, not an ONNX file, or one that is no classifier of this package.
    """

    pretrained_cfg: dict[str, Any]
    num_classes: int

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.session = open_session(self.path)
        properties = self.session.get_modelmeta().custom_metadata_map
        if DESCRIPTION not in properties:
            raise FreqFormerError(f"{path} does not say how to prepare images: write it with `freqformer export`")
        if [output.name for output in self.session.get_outputs()] != [OUTPUT]:
            raise FreqFormerError(f"{path} gives feature maps, no classes: export it without --features")
        description = json.loads(properties[DESCRIPTION])
        self.num_classes = description["num_classes"]
        self.pretrained_cfg = {**description["pretrained_cfg"], "label_names": description["label_names"]}
        self._size = self.session.get_inputs()[0].shape[2:]

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, classes).

        Raises:
            FreqFormerError: the file is for another image size.
        """
        size = list(image.shape[2:])
        if any(isinstance(side, int) and side != given for side, given in zip(self._size, size, strict=True)):
            (height, width), (given_height, given_width) = self._size, size
            raise FreqFormerError(
                f"{self.path} takes images of {height}x{width}, not {given_height}x{given_width}: leave out "
                "--input-size, or export with --dynamic-size"
            )
        (logits,) = self.session.run([OUTPUT], {INPUT: image.float().cpu().numpy()})
        return torch.from_numpy(logits).to(image.device)


def open_session(path: Path) -> Any:
    """An ONNX Runtime session on as many threads as torch has.

    Raises:
        FreqFormerError: no such file, or none that ONNX Runtime can run.
    """
    import onnxruntime

    if not path.is_file():
        raise FreqFormerError(f"there is no ONNX file {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class but this
        reason = " ".join(str(error).split())
        raise FreqFormerError(f"cannot run {path}: {reason[:200]}") from error
