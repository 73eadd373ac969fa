"""Trained models of any family as teachers: loading them, and what they say of images and of places in them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import read_weights
from .errors import FreqFormerError
from .factory import load_model
from .models import SpectralNet, model_names, spelling

TIMM = "timm"
"""In place of a file: the weights that timm publishes under the model's name."""


def load_teacher(name: str, weights: str | None, num_classes: int) -> nn.Module:
    """Make a trained model of timm or of this package.

    Args:
        name: the model's name, with a tag of timm's weights where wanted.
        weights: a weight file or a run's folder; None or "timm" takes the weights that timm publishes.
        num_classes: the classes it must have.

    Returns:
        The model in evaluation mode, its parameters without gradients.

    Raises:
        FreqFormerError: an unknown name, no or unfit weights, or other classes.
    """
    model = _published(name) if weights in (None, TIMM) else _from_file(name, str(weights))
    if (found := int(getattr(model, "num_classes", 0))) != num_classes:
        raise FreqFormerError(
            f"class-count mismatch: the teacher {name} has {found} classes and the data {num_classes}; "
            "use a teacher trained on the data's classes"
        )
    return model.eval().requires_grad_(False)


class Teacher:
    """A frozen model that judges the images of a student; no part of the student's state.

    Not a module, so that no checkpoint, optimiser, wrapper or compiler sees it; copies of what holds it share it.

    Args:
        model: what `load_teacher` returns; it follows the images to their device.
        mean: of each channel, which the images it is given are normalised by.
        std: of each channel, likewise.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        self.model = model
        cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        self.size = tuple(cfg["input_size"][1:])
        own_mean, own_std = torch.tensor(cfg["mean"]), torch.tensor(cfg["std"])
        # From one normalisation to the other in a single step.
        self.scale = (torch.tensor(std) / own_std).view(3, 1, 1)
        self.shift = ((torch.tensor(mean) - own_mean) / own_std).view(3, 1, 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Teacher":
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to the teacher's logits (B, classes)."""
        return self.model(self._prepared(images))

    def _prepared(self, images: Tensor) -> Tensor:
        device = images.device
        if self.scale.device != device:
            self.model.to(device)
            self.scale, self.shift = self.scale.to(device), self.shift.to(device)
        if images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        return torch.addcmul(self.shift, images, self.scale)


def token_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of every place of a classifier's last grid: its head on one token at a time.

    Args:
        model: a classifier with timm's methods; one with a classifier of tokens uses that.
        images: as the model takes them, (B, C, H, W).

    Returns:
        (B, classes, h, w).

    Raises:
        FreqFormerError: its features are no grid.
    """
    features = model.forward_features(images)  # type: ignore[operator]
    if isinstance(model, SpectralNet) and model.token_head is not None:
        return model.forward_head(features, return_tokens=True)[1].permute(0, 3, 1, 2)
    head: Any = model.forward_head
    if features.ndim == 3:
        prefix = int(getattr(model, "num_prefix_tokens", 0))
        tokens = features[:, prefix:]
        grid = _grid_of(model, images, tokens.shape[1])
        # Whether it reads the class token or averages the others, the head finds the one token.
        single = tokens.flatten(0, 1)[:, None].expand(-1, 1 + prefix, -1)
    elif features.ndim == 4:
        last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        tokens = features if last else features.permute(0, 2, 3, 1)
        grid = (tokens.shape[1], tokens.shape[2])
        single = tokens.reshape(-1, 1, 1, tokens.shape[3])
        single = single if last else single.permute(0, 3, 1, 2)
    else:
        raise FreqFormerError(f"{type(model).__name__} has features of shape {tuple(features.shape)}, which is no grid")
    return head(single).unflatten(0, (len(images), *grid)).permute(0, 3, 1, 2)


def _grid_of(model: nn.Module, images: Tensor, tokens: int) -> tuple[int, int]:
    """Rows and columns of a sequence of tokens."""
    embed = getattr(model, "patch_embed", None)
    if hasattr(embed, "dynamic_feat_size"):
        height, width = embed.dynamic_feat_size(images.shape[2:])  # type: ignore[union-attr]
    else:
        height = width = round(tokens**0.5)
    if height * width != tokens:
        raise FreqFormerError(f"{type(model).__name__} has {tokens} tokens, which fill no grid")
    return height, width


def _published(name: str) -> nn.Module:
    try:
        return timm.create_model(spelling(name) if _is_own(name) else name, pretrained=True)
    except Exception as error:  # names, networks, caches and weights each have errors of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FreqFormerError(
            f"cannot load timm's weights of the teacher {name}: {reason}; give a file with --teacher-path"
        ) from error


def _from_file(name: str, weights: str) -> nn.Module:
    if _is_own(name):
        return load_model(weights, arch=name)
    state = read_weights(weights)
    try:
        arguments: dict[str, Any] = _classes_in(state, name)
        model = timm.create_model(name, **arguments)
        model.load_state_dict(state)
    except Exception as error:  # timm and torch have errors of their own for names and shapes
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise FreqFormerError(f"{weights} does not fit the teacher {name}: {' '.join(lines[:2])}") from error
    return model


def _classes_in(state: Mapping[str, Tensor], name: str) -> dict[str, int]:
    """The number of classes in a state dict of one of timm's models, as a keyword."""
    cfg = timm.get_pretrained_cfg(name)
    classifier = cfg.classifier if cfg is not None else None
    classifier = classifier[0] if isinstance(classifier, (tuple, list)) else classifier
    bias = state.get(f"{classifier}.bias")
    return {} if bias is None else {"num_classes": len(bias)}


def _is_own(name: str) -> bool:
    return spelling(name) in model_names()


def weights_name(weights: str | None) -> str:
    """How a file of maps says where its teacher's weights came from: the file's name, or timm."""
    return TIMM if weights in (None, TIMM) else Path(str(weights)).name
