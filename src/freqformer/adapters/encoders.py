"""The pre-trained encoders of FreqFit's paper, by its repository's names, from the files that their authors publish."""

import hashlib
import http.client
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from zipfile import is_zipfile

import numpy as np
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoints import read_weights, write_whole
from ..errors import FreqFormerError

WEIGHTS_ROOT = "pretrained"
"""The folder of the files unless another is named."""
_SILENCE_S = 60
_PIECE = 1 << 20
_POSITIONS = re.compile(r"pos(itional)?_embed(ding)?$")


@dataclass(frozen=True)
class Encoder:
    """One encoder: the network that timm calls ``architecture``, and the file with its weights."""

    architecture: str
    files: tuple[str, ...]
    """The names that it goes by under the weights' folder; what is fetched gets the first."""
    link: str
    fill: Callable[[VisionTransformer, Path], None]
    """Puts the file's weights into the network, and leaves that at the file's image size."""
    arguments: Mapping[str, Any] = field(default_factory=dict)


def make_encoder(
    name: str,
    *,
    num_classes: int,
    img_size: int | tuple[int, int] | None = None,
    weights_root: str | Path | None = None,
    pretrained: bool = True,
    **arguments: Any,
) -> VisionTransformer:
    """Make one of `ENCODERS` with a new classifier, filled from its authors' file, which is fetched where absent.

    Args:
        name: one of `ENCODERS`.
        num_classes: of the new classifier; 0 for none.
        img_size: side, or height and width, in pixels (224); to others the position embedding is resampled.
        weights_root: the folder of the files (``pretrained``).
        pretrained: fill it; else the weights are random.
        **arguments: keywords of timm's ``VisionTransformer``.

    Returns:
        timm's network, in training mode; its ``pretrained_cfg`` has the preprocessing of FreqFit's protocol: the whole
        image resized to the input, bilinearly, and ImageNet's mean and standard deviation.

    Raises:
        FreqFormerError: an unknown name or keyword; a file that is absent and cannot be fetched, is damaged, holds
            code, or does not fit the network.
    """
    if name not in _ENCODERS:
        raise FreqFormerError(f"there is no encoder {name}: choose from {', '.join(ENCODERS)}")
    encoder = _ENCODERS[name]
    keywords = {**encoder.arguments, "num_classes": num_classes, "img_size": img_size, **arguments}
    try:
        model = cast(VisionTransformer, timm.create_model(encoder.architecture, **keywords))
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise FreqFormerError(f"cannot make {name}: {_line(error)}") from error
    if pretrained:
        path = _find(encoder, Path(WEIGHTS_ROOT if weights_root is None else weights_root))
        own_size = model.patch_embed.img_size
        try:
            encoder.fill(model, path)
            _resize(model, own_size)
        except FreqFormerError:
            raise
        except Exception as error:  # numpy, zipfile, timm and torch have errors of their own for files and shapes
            raise FreqFormerError(f"{path} does not fit {name}: {_line(error)}") from error
    cfg: Any = model.pretrained_cfg
    cfg = {
        **{key: cfg[key] for key in ("architecture", "first_conv", "classifier")},
        "url": encoder.link,
        "num_classes": num_classes,
        "input_size": (model.patch_embed.proj.in_channels, *model.patch_embed.img_size),
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    model.pretrained_cfg = model.default_cfg = cfg
    return model


def keywords(name: str) -> dict[str, Any]:
    """The keywords beside those of timm's model that make an encoder's network."""
    return dict(_ENCODERS[name].arguments)


def _fill_from_jax(model: VisionTransformer, path: Path) -> None:
    """The arrays that Google's JAX code saves, put in place by timm's own reader."""
    if not is_zipfile(path):
        raise FreqFormerError(f"cannot read {path}: truncated or not an .npz file")
    with np.load(path, allow_pickle=False) as file:
        held = {key: file[key].shape for key in file.files if not re.search(r"head/|pre_logits/", key)}
    _to_grid_of(model, next((shape for key, shape in held.items() if _POSITIONS.search(key)), ()))
    # timm copies what it looks for, stretching shapes, and passes over the rest: whether all fits is seen here.
    inside = {key: value for key, value in model.named_parameters() if not key.startswith("head.")}
    numbers, wanted = sum(map(math.prod, held.values())), sum(value.numel() for value in inside.values())
    if numbers != wanted:
        raise ValueError(f"it holds {numbers:,} numbers beside the head, the network {wanted:,}")
    with torch.no_grad():
        for value in inside.values():
            value.fill_(torch.nan)
        head = {key: value.clone() for key, value in model.head.state_dict().items()}
    model.load_pretrained(str(path))
    model.head.load_state_dict(head)
    empty = [key for key, value in inside.items() if value.isnan().any()]
    if empty:
        raise ValueError(f"it leaves {empty[0]} without numbers")


def _fill_from_mae(model: VisionTransformer, path: Path) -> None:
    """The encoder of masked autoencoders; its last norm comes after the mean of the patches, as FreqFit has it."""
    state = read_weights(path)
    # A file of pre-training has the decoder too.
    _fill(model, {key: value for key, value in state.items() if not key.startswith(("decoder_", "mask_token"))})


def _fill_from_moco(model: VisionTransformer, path: Path) -> None:
    """MoCo's encoder that learns by gradients, not the one that follows it."""
    state = read_weights(path)
    prefix = "base_encoder."
    _fill(model, {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})


def _fill_from_clip(model: VisionTransformer, path: Path) -> None:
    """CLIP's image tower, without the projection into the space that it shares with text."""
    state = read_weights(path)
    tower = {key: value.float() for key, value in state.items() if key.startswith("visual.") and key != "visual.proj"}
    _fill(model, tower)


def _fill(model: VisionTransformer, state: Mapping[str, Tensor]) -> None:
    """Put every tensor but a head's into the network, the last norm wherever the network has it."""
    _to_grid_of(model, next((value.shape for key, value in state.items() if _POSITIONS.search(key)), ()))
    kernel = model.patch_embed.proj.weight.shape
    found = next((value.shape for value in state.values() if value.ndim == 4), kernel)
    if found != kernel:  # timm would resample them
        raise ValueError(f"its patches are {tuple(found)}, the network's {tuple(kernel)}")
    state = checkpoint_filter_fn(dict(state), model)
    if not isinstance(model.fc_norm, nn.Identity):
        state = {re.sub(r"^norm\.", "fc_norm.", key): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not key.startswith("head.")}
    wanted = {key: value.shape for key, value in model.state_dict().items() if not key.startswith("head.")}
    for key in [*wanted, *state]:
        if key not in state:
            raise ValueError(f"it has no {key}")
        if key not in wanted:
            raise ValueError(f"it has {key}, which the network has not")
        if state[key].shape != wanted[key]:
            raise ValueError(f"its {key} is {tuple(state[key].shape)}, the network's {tuple(wanted[key])}")
    model.load_state_dict(state, strict=False)


def _to_grid_of(model: VisionTransformer, positions: Sequence[int]) -> None:
    """Give the network the square grid that a position embedding (..., tokens, channels) was learned on."""
    if len(positions) < 2:
        raise ValueError("it has no position embedding")
    patches = positions[-2] - model.num_prefix_tokens
    side = math.isqrt(max(patches, 0))
    if side == 0 or side**2 != patches:
        raise ValueError(f"its {positions[-2]} positions are not those of a square")
    height, width = model.patch_embed.patch_size
    model.set_input_size((side * height, side * width))


def _resize(model: VisionTransformer, size: tuple[int, int]) -> None:
    """Take the network from the file's image size, a square, to another."""
    learned = cast(Tensor, model.pos_embed)
    model.set_input_size(size)
    # Earlier releases of timm forget to resample where the other grid has as many places.
    grid = list(model.patch_embed.grid_size)
    positions = resample_abs_pos_embed(learned, grid, num_prefix_tokens=model.num_prefix_tokens)
    with torch.no_grad():
        cast(Tensor, model.pos_embed).copy_(positions)


def _find(encoder: Encoder, root: Path) -> Path:
    """The encoder's file in a folder, fetched into it where it is absent."""
    for name in encoder.files:
        if (root / name).is_file():
            return root / name
    target = root / encoder.files[0]
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FreqFormerError(f"cannot make the folder {root} for {target.name}: {error}") from error
    try:
        write_whole(target, lambda aside: _fetch(encoder.link, aside))
    except _Unreachable as error:
        names = " or ".join(encoder.files)
        raise FreqFormerError(
            f"there is no {names} in {root}, and {encoder.link} cannot be fetched ({_line(error)}): "
            "put the file there by hand, or name its folder with --weights-root"
        ) from error
    return target


class _Unreachable(Exception):
    """The link gave no whole file."""


def _fetch(link: str, target: Path) -> None:
    """Download a whole file; where the link has its SHA-256, as CLIP's does, that is checked."""
    expected = re.search(r"/([0-9a-f]{64})/", link)
    digest, came = hashlib.sha256(), 0
    try:
        # Some hosts turn away what Python calls itself.
        answer = urlopen(Request(link, headers={"User-Agent": "freqformer"}), timeout=_SILENCE_S)
        with answer, target.open("wb") as file:
            length = int(answer.headers["Content-Length"] or 0)
            label = f"fetching {link.rsplit('/', 1)[-1]}"
            shown = {"unit": "B", "unit_scale": True, "disable": None, "delay": 2, "leave": False}
            with tqdm(desc=label, total=length or None, **shown) as bar:
                while piece := answer.read(_PIECE):
                    file.write(piece)
                    digest.update(piece)
                    came += len(piece)
                    bar.update(len(piece))
    except HTTPError as error:
        error.close()  # it is the server's answer too
        raise _Unreachable(_line(error)) from error
    except (URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _Unreachable(_line(error)) from error
    # A connection that breaks off ends like a whole answer.
    if came < length:
        raise _Unreachable(f"only {came:,} of {length:,} bytes came")
    if expected and digest.hexdigest() != expected[1]:
        raise _Unreachable("what came has another SHA-256 than the link says")


def _line(error: BaseException) -> str:
    """The first line of what an error says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


_GOOGLE = "https://storage.googleapis.com/vit_models/imagenet21k"
_META = "https://dl.fbaipublicfiles.com"
_OPENAI = "https://openaipublic.azureedge.net/clip/models"
_ENCODERS = {
    "sup_vitb16_imagenet21k": Encoder(
        "vit_base_patch16_224",
        ("imagenet21k_ViT-B_16.npz", "ViT-B_16.npz"),
        f"{_GOOGLE}/ViT-B_16.npz",
        _fill_from_jax,
    ),
    "sup_vitl16_imagenet21k": Encoder(
        "vit_large_patch16_224",
        ("imagenet21k_ViT-L_16.npz", "ViT-L_16.npz"),
        f"{_GOOGLE}/ViT-L_16.npz",
        _fill_from_jax,
    ),
    "mae_vitb16": Encoder(
        "vit_base_patch16_224",
        ("mae_pretrain_vit_base.pth",),
        f"{_META}/mae/pretrain/mae_pretrain_vit_base.pth",
        _fill_from_mae,
        {"global_pool": "avg"},
    ),
    "mocov3_vitb16": Encoder(
        "vit_base_patch16_224",
        ("vit-b-300ep.pth.tar",),
        f"{_META}/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar",
        _fill_from_moco,
    ),
    "clip_vitb16": Encoder(
        "vit_base_patch16_clip_quickgelu_224",
        ("ViT-B-16.pt",),
        f"{_OPENAI}/5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
        _fill_from_clip,
    ),
}
ENCODERS = tuple(_ENCODERS)
"""The names that `make_encoder` takes."""
