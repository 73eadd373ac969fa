"""Classify images with a model or a checkpoint."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor

from ..data import EXTENSIONS, decode
from ..data.images import Source
from ..errors import FreqFormerError
from ..factory import Classifier, load_classifier
from ..tasks import model_transform


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, most probable first."""

    image: str
    """The image's path, or ``image N`` for one in memory."""
    indices: list[int]
    labels: list[str]
    probabilities: list[float]


@torch.inference_mode()
def predict(
    model: Classifier | str | Path,
    images: Source | Iterable[Source],
    *,
    top_k: int = 5,
    batch_size: int = 64,
) -> list[Prediction]:
    """Classify images.

    Args:
        model: a model whose ``pretrained_cfg`` says its preprocessing, or the path of a checkpoint or an
            exported ``.onnx`` file.
        images: one image or several: paths, or PIL images.
        top_k: classes to name for each image.
        batch_size: images per step.

    Returns:
        One `Prediction` an image, in their order.

    Raises:
        FreqFormerError: an unusable checkpoint, an image that cannot be read, or a model without classes.
    """
    if isinstance(model, (str, Path)):
        model = load_classifier(model)
    sources = iter([images] if isinstance(images, (str, Path, Image.Image)) else images)
    names = class_names(model)
    if not names:
        raise FreqFormerError("the model has no classifier: load one with classes")
    transform = model_transform(model)
    # An ONNX file has no parameters here.
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    predictions: list[Prediction] = []
    try:
        while batch := list(islice(sources, batch_size)):
            pixels = torch.stack([transform(open_source(source)) for source in batch]).to(device)
            for source, (values, chosen) in zip(batch, most_probable(model, pixels, top_k), strict=True):
                name = f"image {len(predictions)}" if isinstance(source, Image.Image) else str(source)
                predictions.append(Prediction(name, chosen, [names[i] for i in chosen], values))
    finally:
        model.train(was_training)
    return predictions


def most_probable(model: Classifier, pixels: Tensor, top_k: int) -> list[tuple[list[float], list[int]]]:
    """The probabilities and the indices of the most probable classes of prepared images.

    Args:
        model: a classifier in evaluation mode.
        pixels: (B, 3, H, W), as the model's own preprocessing makes them.
        top_k: classes of each image at most.

    Returns:
        For each image both lists, most probable first.
    """
    logits = model(pixels)
    probabilities, indices = logits.float().softmax(-1).topk(min(top_k, logits.shape[-1]))
    return list(zip(probabilities.tolist(), indices.tolist(), strict=True))


def class_names(model: Classifier) -> list[str]:
    """The names of a model's classes: its checkpoint's, ImageNet-1K's for bare 1000-class weights, or numbers."""
    names = model.pretrained_cfg.get("label_names")
    if names:
        return list(names)
    if model.num_classes == 1000:
        info = ImageNetInfo()
        return [info.index_to_description(i) for i in range(1000)]
    return [str(i) for i in range(model.num_classes)]


def find_images(paths: Sequence[str | Path]) -> Iterator[Path]:
    """The images that paths name: files as they are, folders with all images below them, in sorted order.

    Raises:
        FreqFormerError: a path does not exist, or a folder has no image.
    """
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            if not found:
                raise FreqFormerError(f"{path} has no images: name image files, or a folder that holds some")
            yield from found
        elif path.exists():
            yield path
        else:
            raise FreqFormerError(f"there is no image or folder {path}")


def open_source(source: Source) -> Image.Image:
    """The image that a path names, or a PIL image, in RGB; raises UnreadableImage."""
    return source.convert("RGB") if isinstance(source, Image.Image) else decode(source, str(source))
