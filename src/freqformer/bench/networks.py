"""Networks as benchmarks run them: one image size, one precision, inference or a training step."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compiling import compile_for_inference, compile_for_training
from ..errors import FreqFormerError
from ..factory import create_model
from ..models import model_names, spelling
from ..ops import use_lowering
from .agreement import NETWORK, require_agreement
from .base import torch_dtype

OFFICIAL = "official"
_CLASSES = 1000


@dataclass(frozen=True)
class Network:
    """What runs, and how; plain values, so that another process can be told."""

    arch: str
    """A name of ours, or of timm."""
    size: int
    """Side of the images in pixels."""
    batch: int
    dtype: str
    device: str
    autocast: bool = False
    """Whether half precision comes from autocast around float32 weights; otherwise weights and images are in it."""
    lowering: str | None = None
    """None follows the rules."""
    compiled: bool = False
    train: bool = False
    """Whether a step is forward, loss, backward and AdamW; otherwise the forward pass without gradients."""

    def describe(self) -> dict[str, object]:
        """How it runs, for a row."""
        return {"dtype": self.dtype, "autocast": self.autocast, "lowering": self.lowering, "compiled": self.compiled}


def official(arch: str, ours: Network, *, dtype: str, compiled: bool) -> Network:
    """The official formulation of one of our networks: transforms by torch.fft in float32, autocast around the rest."""
    return Network(
        arch,
        ours.size,
        ours.batch,
        dtype,
        ours.device,
        autocast=dtype != "float32",
        lowering="fft",
        compiled=compiled,
        train=ours.train,
    )


def require_known(flag: str, name: str) -> None:
    """Raise FreqFormerError unless a name is a model of ours or of timm."""
    if not (is_ours(name) or timm.is_model(name)):
        near = get_close_matches(name, [*model_names(), *timm.list_models()], n=3)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else "`freqformer models` lists ours, timm.list_models() timm's"
        )
        raise FreqFormerError(f"{flag}: there is no model {name!r}: {hint}")


def is_ours(name: str) -> bool:
    """Whether a name, or a paper's spelling, is a model of this package."""
    return spelling(name) in model_names()


def make_model(network: Network) -> nn.Module:
    """The network's module with random weights, equal for equal architectures, on its device and in its precision."""
    torch.manual_seed(0)
    if is_ours(network.arch):
        model: nn.Module = create_model(network.arch, num_classes=_CLASSES, img_size=network.size)
        _strengthen(model)
    else:
        # timm's attention models have a position for each token, its convolutional ones take any size.
        is_fixed = timm.models.get_pretrained_cfg(network.arch).fixed_input_size  # type: ignore[union-attr]
        sized: dict[str, Any] = {"img_size": network.size} if is_fixed else {}
        model = timm.create_model(network.arch, num_classes=_CLASSES, **sized)
    dtype = torch.float32 if network.autocast else torch_dtype(network.dtype)
    return model.to(network.device, dtype).train(network.train)


@torch.no_grad()
def _strengthen(model: nn.Module) -> None:
    """In a new model filters and the scales of branches are so small that a wrong filter would hardly show."""
    for name, parameter in model.named_parameters():
        if name.endswith("complex_weight"):
            parameter.normal_()
        elif name.endswith("gamma"):
            parameter.fill_(1)


def make_step(network: Network, model: nn.Module | None = None) -> Callable[[], Tensor]:
    """What is timed: a function that runs the network once, and returns its logits, or the loss of a training step.

    Args:
        network: what runs, and how.
        model: its module; made when None.
    """
    model = make_model(network) if model is None else model
    images = make_images(network)
    if not network.train:
        call = compile_for_inference(model) if network.compiled else model

        def infer() -> Tensor:
            with _setting(network):
                return call(images)

        return infer
    if network.compiled:
        compile_for_training(model)
    targets = torch.arange(network.batch, device=network.device) % _CLASSES
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    scaler = torch.amp.GradScaler(network.device, enabled=network.dtype == "float16")

    def train() -> Tensor:
        with _setting(network):
            loss = F.cross_entropy(model(images), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return train


def make_images(network: Network) -> Tensor:
    """A batch of noise, equal for equal sizes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(network.batch, 3, network.size, network.size, generator=generator)
    return images.to(network.device, torch.float32 if network.autocast else torch_dtype(network.dtype))


@contextmanager
def _setting(network: Network) -> Iterator[None]:
    with ExitStack() as stack:
        if network.lowering is not None:
            stack.enter_context(use_lowering(network.lowering))
        if network.autocast and network.dtype != "float32":
            stack.enter_context(torch.autocast(network.device, torch_dtype(network.dtype)))
        if not network.train:
            stack.enter_context(torch.inference_mode())
        yield


def require_equal_networks(ours: Network, against: Network) -> None:
    """Raise Disagreement unless two ways of running one architecture give the same features.

    Behind a pooled output errors hide, so the last grids are compared, as the modules give them without a compiler.
    """
    features = [_features(network) for network in (ours, against)]
    require_close(ours, against, "features", *features)


def require_close(ours: Network, against: Network, what: str, one: Tensor, other: Tensor) -> None:
    """Raise Disagreement unless results of two ways of running one architecture are equal up to their rounding."""
    half = next((name for name in (ours.dtype, against.dtype) if name != "float32"), "float32")
    require_agreement(f"{ours.arch} ({what}) in {ours.dtype}", [one], [other], NETWORK[half])


def _features(network: Network) -> Tensor:
    model = make_model(network)
    with torch.no_grad(), _setting(network):
        return model.forward_features(make_images(network))  # type: ignore[operator]
