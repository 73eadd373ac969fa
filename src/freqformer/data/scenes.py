"""Scenes: images with a mask of classes each, in folders."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from tqdm import tqdm

from freqformer.data.class_names import ClassFile, default_palette, find_class_file, places_among, read_class_file
from freqformer.data.files import Packed, pack_paths, path_at
from freqformer.data.folders import image_files
from freqformer.data.images import UnreadableImage, decode
from freqformer.data.masks import IGNORED, MaskReader, check_kind, read_values
from freqformer.errors import FreqFormerError

_WORDS = {"train": ("train", "training"), "val": ("val", "validation")}
# Where a split's images and its masks lie, below the data set's folder.
_LAYOUTS = (
    *(("{}/images", "{}/" + masks) for masks in ("masks", "labels", "annotations")),
    *(("images/{}", masks + "/{}") for masks in ("masks", "labels", "annotations")),
    ("img_dir/{}", "ann_dir/{}"),
    *(("{}", "{}" + masks) for masks in ("annot", "_labels", "_masks", "_annot")),
)
# What a mask's name may have behind its image's: NAME_L, NAME_mask, NAME_gtFine_labelIds.
_SUFFIX = re.compile(r"[_\-. ][A-Za-z][\w\-. ]*")


@dataclass(frozen=True)
class Scenes:
    """Images of one split with a mask each; a sequence that decodes a pair when it is asked for.

    Args:
        classes: their names, without the ignored one.
        palette: their colours, uint8 (K, 3).
        images: their paths.
        masks: the paths of their masks.
        rows: int64 (N,), the chosen ones of them.
        reader: what the masks' values mean.
        root: the folder that the images lie in; when it is gone, so are they all.
        problems: how many files were left out, by the reason.
    """

    classes: list[str]
    palette: np.ndarray
    images: Packed
    masks: Packed
    rows: np.ndarray
    reader: MaskReader
    root: str
    problems: dict[str, int]

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, i: int) -> tuple[Image.Image, tv_tensors.Mask]:
        """Read the i-th pair.

        Returns:
            The RGB image, and its mask, uint8 (H, W): classes 0..K-1, and ``IGNORED`` for pixels without one.

        Raises:
            UnreadableImage: the image or its mask cannot be read, they differ in size, or the mask has a value that
                means nothing.
        """
        name, mask_path = self.name(i), path_at(self.masks, int(self.rows[i]))
        image = decode(name, name)
        mask = self.reader.read(mask_path, name)
        if mask.shape != (image.height, image.width):
            sizes = f"{mask.shape[1]}x{mask.shape[0]}", f"{image.width}x{image.height}"
            raise UnreadableImage(name, f"its mask {mask_path} has {sizes[0]} pixels and the image {sizes[1]}")
        return image, tv_tensors.Mask(torch.from_numpy(mask))

    def counts(self) -> np.ndarray:
        """Count the pixels of each class, int64 (K,); masks that cannot be read count nothing."""
        counts = np.zeros(IGNORED + 1, dtype=np.int64)
        for i in tqdm(range(len(self)), "counting classes", disable=None, leave=False):
            with contextlib.suppress(UnreadableImage):
                mask = self.reader.read(path_at(self.masks, int(self.rows[i])), self.name(i))
                counts += np.bincount(mask.ravel(), minlength=IGNORED + 1)
        return counts[: len(self.classes)]

    def name(self, i: int) -> str:
        """Return the path of the i-th image."""
        return path_at(self.images, int(self.rows[i]))


def open_scenes(
    path: str | Path | None,
    split: str,
    *,
    images: str | Path | None = None,
    masks: str | Path | None = None,
    class_file: str | Path | None = None,
    ignore_index: int | None = 255,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
) -> Scenes:
    """Open one split of a folder data set for semantic segmentation; nothing is decoded yet.

    An image and its mask have the same name up to the ending; all the masks may have one suffix more, such as ``_L`` or
    ``_mask``. Masks hold a class's number in each pixel (grey or with a palette), or its colour in the class file.
    In ADE20K's folders the numbers begin with 1, and 0 is ignored, unless a class file of other classes lies there.

    Args:
        path: the data set's folder, in one of the layouts of CamVid (``train/images``, ``train/masks``; or ``train``,
            ``trainannot``), ADE20K (``images/training``, ``annotations/training``), mmsegmentation
            (``img_dir/train``, ``ann_dir/train``) or ``images/train`` with ``masks/train`` or ``labels/train``.
        split: "train" ("training"), "val" ("validation"), "test" or another folder's name.
        images: the split's folder of images, in place of a layout.
        masks: its folder of masks.
        class_file: the classes' names and colours, see `read_class_file`; without one that is looked for in ``path``,
            and where there is none the classes are numbered up to the largest value in the masks.
        ignore_index: the value of pixels without a class; the class of that number is removed from the list.
        classes: label names that the masks must follow, such as a checkpoint's: matched by name if all are known,
            otherwise in order.
        limit: take this many scenes, the first of a fixed shuffled order.

    Returns:
        The scenes, in the order of their paths.

    Raises:
        FreqFormerError: the folders, the class file or the classes are not as they should be, or no image has a mask.
    """
    if limit is not None and limit < 1:
        raise FreqFormerError(f"the number of images to train on must be at least 1, not {limit}")
    if ignore_index is not None and not 0 <= ignore_index <= 65535:
        raise FreqFormerError(f"--ignore-index must be in 0..65535, not {ignore_index}")
    image_folder, mask_folder = _folders(path, split, images, masks)
    image_paths, mask_paths, problems = _pair(image_folder, mask_folder)

    above = Path(path).expanduser() if path is not None else Path(os.path.commonpath([image_folder, mask_folder]))
    file = class_file if class_file is not None else find_class_file(above)
    listed = read_class_file(file) if file is not None else None
    first = int(_is_ade20k(image_folder, mask_folder, listed))
    ignored = sorted({*range(first), *([] if ignore_index is None else [ignore_index])})
    check_kind(mask_paths, listed.colours if listed else None, ignored)
    values, names = _named(listed, mask_paths, first, ignored, classes)
    if not 2 <= len(names) <= 255:
        found = f"{len(names)}" + (f" ({', '.join(names[:3])}, ...)" if names else "")
        raise FreqFormerError(
            f"segmentation needs 2 to 255 classes beside the ignored one; {file or mask_folder} has {found}"
        )

    colours = listed.colours if listed else None
    own_palette = default_palette(len(names)) if colours is None else colours[np.array(values) - first]
    places = np.arange(len(names))
    if classes is not None:
        if len(classes) != len(names):
            raise FreqFormerError(
                f"class-count mismatch: the masks have {len(names)} classes and the model {len(classes)}; "
                "use the classes and the --ignore-index that the model was trained with"
            )
        places, names = places_among(names, classes), list(classes)
    palette = own_palette if colours is None else own_palette[np.argsort(places)]
    rows = np.arange(len(image_paths))
    if limit is not None and limit < len(rows):
        # RandomState's streams are frozen, those of NumPy's newer generators are not.
        rows = np.random.RandomState(0).permutation(len(rows))[:limit]
    return Scenes(
        classes=names,
        palette=palette,
        images=pack_paths(image_paths),
        masks=pack_paths(mask_paths),
        rows=rows,
        reader=MaskReader.of(values, places, first=first, ignore_index=ignore_index, colours=colours),
        root=str(image_folder),
        problems=problems,
    )


def _folders(
    path: str | Path | None, split: str, images: str | Path | None, masks: str | Path | None
) -> tuple[Path, Path]:
    """Where a split's images and masks lie."""
    # Training has its own folders, and every other split is one to evaluate on.
    part = "train" if split in _WORDS["train"] else "val"
    flags = f"--{part}-images and --{part}-masks"
    if (images is None) != (masks is None):
        raise FreqFormerError(f"images and masks lie in two folders: give both, {flags}")
    if images is not None and masks is not None:
        pair = Path(images).expanduser(), Path(masks).expanduser()
        for folder in pair:
            if not folder.is_dir():
                raise FreqFormerError(f"{folder} is not a folder; check {flags}")
        if os.path.samefile(*pair):
            raise FreqFormerError(f"images and masks lie in one folder, {pair[0]}; put the masks into another")
        return pair
    if path is None:
        raise FreqFormerError(f"segmentation needs images with masks; give --data-path, or {flags}")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FreqFormerError(f"{root} {'is not a folder' if root.exists() else 'does not exist'}; check --data-path")
    words = next((words for words in _WORDS.values() if split in words), (split,))
    for layout in _LAYOUTS:
        for word in words:
            image_folder, mask_folder = (root / each.format(word) for each in layout)
            if image_folder.is_dir() and mask_folder.is_dir():
                return image_folder, mask_folder
    looked_for = ", ".join(" with ".join(layout).replace("{}", split) for layout in _LAYOUTS)
    found = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
    raise FreqFormerError(
        f"{root} has no split {split!r} of images and masks: looked for {looked_for}, and it holds {found}; "
        f"check --data-path, or give {flags}"
    )


def _pair(image_folder: Path, mask_folder: Path) -> tuple[list[str], list[str], dict[str, int]]:
    """The paths of images and of the masks of the same names, and how many were left out."""
    images = sorted(_listed(image_folder))
    # Of masks that differ in the ending alone the last is taken: after .jpg comes .png.
    all_masks = sorted(_listed(mask_folder))
    masks = dict(all_masks)
    names = {name for name, _ in images}
    suffix = _common_suffix(names, masks)
    pairs = [(path, masks[name + suffix]) for name, path in images if name + suffix in masks]
    if not pairs:
        example = f"{images[0][0]}.png" if images else "NAME.png"
        found = os.path.basename(all_masks[0][1]) if all_masks else "no image files"
        raise FreqFormerError(
            f"none of the {len(images)} images in {image_folder} has a mask in {mask_folder}: looked for a mask of its "
            f"name, such as {example}, or with a suffix that all have, such as NAME_mask.png; found {found}"
        )
    problems = {
        "images without a mask": len(images) - len(pairs),
        "masks without an image": sum(name.removesuffix(suffix) not in names for name in masks),
        "masks that differ from another in the ending of the name alone": len(all_masks) - len(masks),
    }
    image_paths, mask_paths = (list(each) for each in zip(*pairs, strict=True))
    return image_paths, mask_paths, {what: count for what, count in problems.items() if count}


def _listed(folder: Path) -> Iterable[tuple[str, str]]:
    """Every image file below a folder: its path from there without the ending, and its path."""
    files = tqdm(image_files(folder), f"listing {folder.name}", unit=" files", disable=None, delay=2, leave=False)
    for path in files:
        yield os.path.splitext(os.path.relpath(path, folder))[0], path


def _common_suffix(images: set[str], masks: Iterable[str]) -> str:
    """What most masks' names have behind an image's; "" is preferred."""
    suffixes: Counter[str] = Counter()
    for name in masks:
        if name in images:
            suffixes[""] += 1
            continue
        for end in range(len(name) - 1, 0, -1):
            if name[:end] in images and _SUFFIX.fullmatch(name[end:]):
                suffixes[name[end:]] += 1
                break
    return max(suffixes, key=lambda suffix: (suffixes[suffix], suffix == "", suffix), default="")


def _is_ade20k(image_folder: Path, mask_folder: Path, listed: ClassFile | None) -> bool:
    """Whether masks hold 0 for "other" and number the classes from 1, as the folders' and the classes' names tell."""
    if mask_folder.parent.name != "annotations" or image_folder.name not in ("training", "validation"):
        return False
    return listed is None or listed.is_ade20k or len(listed.names) == 150


def _named(
    listed: ClassFile | None, masks: list[str], first: int, ignored: list[int], classes: Sequence[str] | None
) -> tuple[list[int], list[str]]:
    """The values that are classes, in rising order, and what they are called."""
    if listed is not None:
        values = [value for value in range(first, first + len(listed.names)) if value not in ignored]
        return values, [listed.names[value - first] for value in values]
    if classes is not None:
        # Their number is known then, and reading all the masks would take long.
        values = [value for value in range(len(classes) + len(ignored)) if value not in ignored][: len(classes)]
        return values, list(classes)
    found = _found(masks) - {*ignored}
    largest = max(found, default=-1)
    if 255 in found and 254 not in found:
        raise FreqFormerError(
            f"the masks hold 255 beside {len(found) - 1} lower values: give --ignore-index 255 if it means no class; "
            "otherwise number the classes 0, 1, 2, ..., or give --class-file"
        )
    if largest > 255 + first:
        raise FreqFormerError(f"the masks hold values up to {largest}, and at most 255 classes; give --class-file")
    values = [value for value in range(largest + 1) if value not in ignored]
    return values, [str(value) for value in values]


def _found(masks: list[str]) -> set[int]:
    """All the values in masks; those that cannot be read show when they are."""
    found: set[int] = set()
    for path in tqdm(masks, "finding the masks' classes", unit=" masks", disable=None, delay=2, leave=False):
        with suppress(UnreadableImage):
            pixels = read_values(path)
            if pixels.ndim == 2:
                found.update(np.unique(pixels).tolist())
    return found
