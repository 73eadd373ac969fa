"""Dense label maps: a teacher's scores of the best classes at every place of an image, kept in a small file each.

A folder of maps has ``labelmaps.json`` (`Description`) and a file for each image: ``train/CLASS/NAME.safetensors`` for
the image ``ROOT/train/CLASS/NAME.jpg``, and the image's id with the ending ``.safetensors`` for data sets that are not
files. A file holds ``scores``, float16 (K, h, w), and ``classes``, int16 (K, h, w): at each place of a grid over the
whole image the K best classes, best first, and their logits; a class that is not named has the logit 0.

The maps published with TokenLabeling (Jiang et al., "All Tokens Matter", NeurIPS 2021) are read too: a tensor of both,
float16 (2, K, h, w), in ``CLASS/NAME.pt``.
"""

import json
import pickle
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import roi_align
from torchvision.transforms.v2 import functional as F

from freqformer.checkpoints import write_whole
from freqformer.errors import FreqFormerError

_DESCRIPTION = "labelmaps.json"
_SUFFIX = ".safetensors"
# What reading a damaged file raises.
_DAMAGED = (SafetensorError, OSError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)


@dataclass
class Description:
    """What made the maps of a folder."""

    teacher: str
    """The teacher's name."""
    weights: str
    """Where its weights came from."""
    num_classes: int
    """Its classes."""
    top_k: int
    """Classes named at each place."""
    grid: list[int]
    """Places along the height and the width."""
    input_size: list[int]
    """Height and width of the images it saw."""

    def write(self, folder: Path) -> None:
        """Write it into the folder, which is made; raises FreqFormerError if that is impossible."""
        _make_folder(folder)
        text = json.dumps(asdict(self), indent=2)
        write_whole(folder / _DESCRIPTION, lambda path: path.write_text(text))


def read_description(folder: Path) -> Description | None:
    """What made a folder's maps, or None where nothing says so; raises FreqFormerError on a damaged file."""
    path = folder / _DESCRIPTION
    try:
        return Description(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise FreqFormerError(f"cannot read {path}: {error}; make the label maps again") from error


class LabelMaps:
    """The label maps of a split, read one at a time.

    Args:
        folder: what `freqformer labelmaps` wrote, or TokenLabeling's folder of classes.
        root: the data set's folder, which the images' paths begin with; None for data sets without one.
        num_classes: the classes that the maps may name.

    Raises:
        FreqFormerError: there is no such folder, or its maps have other classes.
    """

    def __init__(self, folder: str | Path, root: str | Path | None, num_classes: int) -> None:
        self.folder, self.num_classes = Path(folder).expanduser(), num_classes
        self.root = None if root is None else Path(root).expanduser()
        if not self.folder.is_dir():
            raise FreqFormerError(f"there is no folder of label maps {folder}; `freqformer labelmaps` makes one")
        description = read_description(self.folder)
        self.is_published = description is None
        self._shape = None if description is None else (2, description.top_k, *description.grid)
        if description is not None and description.num_classes != num_classes:
            raise FreqFormerError(
                f"class-count mismatch: the label maps in {folder} have {description.num_classes} classes and the data "
                f"{num_classes}; make them with a teacher of the data's classes"
            )

    def path(self, name: str) -> Path:
        """Where the map of an image lies, by the image's name (`Images.name`)."""
        if self.is_published:
            return self.folder.joinpath(
                *PurePosixPath(name).parts[-2:-1], f"{PurePosixPath(name).name.split('.')[0]}.pt"
            )
        return map_path(self.folder, self.root, name)

    def load(self, name: str) -> Tensor:
        """The map of an image.

        Returns:
            Scores and classes, float32 (2, K, h, w), of one shape for all images.

        Raises:
            FreqFormerError: the file is missing, damaged, of another shape than the others', or names classes that
                are not there; it is named.
        """
        path = self.path(name)
        label_map = read_map(path)
        self._shape = self._shape or tuple(label_map.shape)
        if label_map.shape != self._shape:
            raise FreqFormerError(
                f"the label map {path} has the shape {tuple(label_map.shape)}, others {self._shape}; delete it and "
                "make it again"
            )
        low, high = (float(bound) for bound in label_map[1].aminmax())
        if not (low >= 0 and high < self.num_classes):
            raise FreqFormerError(
                f"the label map {path} names classes from {low:.0f} to {high:.0f}, not 0 to {self.num_classes - 1}"
            )
        return label_map


def map_path(folder: Path, root: Path | None, name: str) -> Path:
    """Where the map of an image belongs.

    Args:
        folder: the folder of maps.
        root: the data set's folder.
        name: the image's name: a path below ``root``, or an id.
    """
    path = Path(name)
    if root is not None and path.is_relative_to(root):
        return folder / path.relative_to(root).with_suffix(_SUFFIX)
    # An id has no ending to replace, and may not lead out of the folder.
    parts = [part for part in path.parts if part not in (path.anchor, "..")]
    return folder.joinpath(*parts[:-1], parts[-1] + _SUFFIX)


def read_map(path: Path) -> Tensor:
    """Scores and classes in a file, float32 (2, K, h, w); raises FreqFormerError naming it."""
    try:
        if path.suffix == ".pt":
            label_map = torch.load(path, map_location="cpu", weights_only=True)
        else:
            stored = load_file(path)
            # float16 would not tell more than 2048 classes apart.
            label_map = torch.stack([stored["scores"].float(), stored["classes"].float()])
    except FileNotFoundError as error:
        raise FreqFormerError(f"there is no label map {path}: `freqformer labelmaps` makes the missing ones") from error
    except _DAMAGED as e:
        raise FreqFormerError(f"cannot read the label map {path}: it is damaged; delete it and make it again") from e
    if not (isinstance(label_map, Tensor) and label_map.ndim == 4 and label_map.shape[0] == 2 and label_map.numel()):
        raise FreqFormerError(f"{path} is not a label map: a tensor (2, K, h, w) of scores and classes is needed")
    return label_map.float()


def write_map(path: Path, scores: Tensor, classes: Tensor) -> None:
    """Write a map whole or not at all.

    Args:
        path: where to; its folder is made.
        scores, classes: (K, h, w).

    Raises:
        FreqFormerError: it cannot be written.
    """
    _make_folder(path.parent)
    write_whole(path, lambda aside: aside.write_bytes(_encoded(scores, classes)))


def map_size(description: Description) -> int:
    """The bytes of each file of a folder's maps."""
    empty = torch.zeros(description.top_k, *description.grid)
    return len(_encoded(empty, empty))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FreqFormerError(f"cannot make {folder}: {error.strerror}") from error


def _encoded(scores: Tensor, classes: Tensor) -> bytes:
    return save({"scores": scores.half().contiguous(), "classes": classes.to(torch.int16).contiguous()})


class Region(tv_tensors.TVTensor):
    """Which part of the source image a transformed one shows; v2's geometry moves it as it moves the image.

    Six numbers: the source's relative coordinates (0 to 1) at the upper left and at the lower right corner, y0, x0, y1
    and x1, and the height and width of the transformed image in pixels. A flip swaps two; padding goes beyond 0 to 1.
    """

    @classmethod
    def whole(cls, size: tuple[int, int]) -> "Region":
        """All of an image of (H, W) pixels."""
        return torch.tensor([0.0, 0.0, 1.0, 1.0, *size], dtype=torch.float64).as_subclass(cls)

    @property
    def box(self) -> Tensor:
        """y0, x0, y1 and x1, float32 (4,)."""
        return self.as_subclass(Tensor)[:4].float()


def _cut(region: Region, top: float, left: float, height: float, width: float) -> Region:
    y0, x0, y1, x1, h, w = region.tolist()
    down, right = (y1 - y0) / h, (x1 - x0) / w
    corners = [y0 + top * down, x0 + left * right, y0 + (top + height) * down, x0 + (left + width) * right]
    return torch.tensor([*corners, height, width], dtype=torch.float64).as_subclass(Region)


def _sized(region: Region, size: Any) -> Region:
    return torch.cat([region.as_subclass(Tensor)[:4], torch.tensor(list(size), dtype=torch.float64)]).as_subclass(
        Region
    )


@F.register_kernel(F.crop, Region)
def _crop(region: Region, top: int, left: int, height: int, width: int) -> Region:
    return _cut(region, top, left, height, width)


@F.register_kernel(F.resized_crop, Region)
def _resized_crop(region: Region, top: int, left: int, height: int, width: int, size: Any, **_: Any) -> Region:
    return _sized(_cut(region, top, left, height, width), size)


@F.register_kernel(F.resize, Region)
def _resize(region: Region, size: Any, **_: Any) -> Region:
    return _sized(region, size)


@F.register_kernel(F.pad, Region)
def _pad(region: Region, padding: Any, **_: Any) -> Region:
    around = [padding] if isinstance(padding, int) else list(padding)
    left, top, right, bottom = {1: around * 4, 2: around * 2}.get(len(around), around)
    height, width = region.tolist()[4:]
    return _cut(region, -top, -left, height + top + bottom, width + left + right)


@F.register_kernel(F.horizontal_flip, Region)
def _horizontal_flip(region: Region) -> Region:
    return region.as_subclass(Tensor)[[0, 3, 2, 1, 4, 5]].as_subclass(Region)


@F.register_kernel(F.vertical_flip, Region)
def _vertical_flip(region: Region) -> Region:
    return region.as_subclass(Tensor)[[2, 1, 0, 3, 4, 5]].as_subclass(Region)


def labels_in(label_map: Tensor, box: Tensor, grid: tuple[int, int], num_classes: int) -> Tensor:
    """What maps say of the parts of their images that a batch shows.

    The logits of all classes are averaged over each cell of the grid (RoI Align), then go through a softmax.

    Args:
        label_map: scores and classes, (B, 2, K, h, w).
        box: `Region.box` of each sample, (B, 4).
        grid: cells (H, W) over the part.
        num_classes: classes.

    Returns:
        Probabilities, float32 (B, classes, H, W).
    """
    scores, classes = label_map[:, 0].float(), label_map[:, 1].long()
    dense = scores.new_zeros(len(scores), num_classes, *scores.shape[2:]).scatter_(1, classes, scores)
    y0, x0, y1, x1 = box.float().unbind(1)
    height, width = scores.shape[2:]
    corners = [
        torch.minimum(x0, x1) * width,
        torch.minimum(y0, y1) * height,
        torch.maximum(x0, x1) * width,
        torch.maximum(y0, y1) * height,
    ]
    logits = roi_align(dense, [part[None] for part in torch.stack(corners, 1)], grid, aligned=True)
    logits = torch.where((x1 < x0)[:, None, None, None], logits.flip(3), logits)
    logits = torch.where((y1 < y0)[:, None, None, None], logits.flip(2), logits)
    return logits.softmax(dim=1)
