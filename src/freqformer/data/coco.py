"""Images with the instances in them: boxes, and masks, in COCO's format."""

import itertools
import os
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from freqformer.data.coco_files import find_annotations, find_images
from freqformer.data.coco_records import Records, corners, fill_sizes, read_records, usable
from freqformer.data.files import Packed
from freqformer.data.images import UnreadableImage, decode, printable
from freqformer.data.run_lengths import decode_masks, mask_area, require_library, unpack
from freqformer.errors import FreqFormerError


@dataclass(frozen=True)
class Instances:
    """The images of one split with their instances; a sequence that decodes an image when it is asked for.

    The annotations of image i are the rows ``starts[i]`` to ``starts[i + 1]``.

    Args:
        classes: label names in the order of the labels.
        category_ids: what the file calls the classes.
        root: the folder that the images lie in.
        problems: how many annotations or images were dropped or mended, by a phrase that says why.
        files: the images' paths below the root.
        ids: int64 (N,), what the file calls the images, or objects (N,) where it calls some by strings.
        sizes: int64 (N, 2), (H, W) of each image, (0, 0) where neither the file nor the image says it.
        starts: int64 (N + 1,).
        labels: int64 (M,).
        boxes: float64 (M, 4), left, top, width and height in pixels, as the file has them.
        areas: float64 (M,) in pixels, NaN where the file gives none.
        crowd: bool (M,).
        segmentations: packed, of every annotation; None without masks.
    """

    classes: list[str]
    category_ids: list[int]
    root: str
    problems: dict[str, int]
    files: Packed
    ids: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    segmentations: Packed | None

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        """Return the path of the i-th image."""
        return os.path.join(self.root, os.fsdecode(self.files[i]))

    def image_id(self, i: int) -> int | str:
        """Return what the annotation file calls the i-th image."""
        return self.ids[i] if self.ids.dtype == object else int(self.ids[i])

    def number(self, i: int) -> int:
        """Return what `ground_truth` calls the i-th image: its id, or i + 1 where ids are not all integers."""
        return i + 1 if self.ids.dtype == object else int(self.ids[i])

    def size(self, i: int) -> tuple[int, int] | None:
        """Return (H, W) of the i-th image, or None where neither the annotation file nor the image says it."""
        height, width = self.sizes[i].tolist()
        return (height, width) if height else None

    def load(self, i: int) -> tuple[Image.Image, dict[str, torch.Tensor]]:
        """Read the i-th image and its instances, without crowds.

        Returns:
            The RGB image, and a dict of ``boxes``: float32 (K, 4), left, top, right and bottom in pixels, cut to the
            image; ``labels``: int64 (K,); and, opened with masks, ``masks``: uint8 (K, H, W), none of them empty.
            Boxes and masks are torchvision's tv_tensors.

        Raises:
            UnreadableImage: the image cannot be read, or is of another size than the annotations say.
        """
        path = self.name(i)
        image, size = decode(path, path), self.size(i)
        if size is None:
            raise UnreadableImage(path, "its size could not be read")
        if (image.width, image.height) == size:
            # Who wrote the annotations may have seen the image as it is stored.
            image = decode(path, path, upright=False)
        if (image.height, image.width) != size:
            raise UnreadableImage(
                path, f"it is {image.width} x {image.height} pixels, the annotations say {size[1]} x {size[0]}"
            )
        rows = np.arange(self.starts[i], self.starts[i + 1])
        rows = rows[~self.crowd[rows]]
        target: dict[str, torch.Tensor] = {}
        if self.segmentations is not None:
            masks = decode_masks([unpack(self.segmentations[row]) for row in rows], size)
            # What shows only now: a polygon between the pixels' centres.
            drawn = masks.any(axis=(1, 2))
            rows, masks = rows[drawn], masks[drawn]
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        sides = torch.from_numpy(corners(self.boxes[rows], self.sizes[[i]]))
        boxes = tv_tensors.BoundingBoxes(sides, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size)
        return image, {"boxes": boxes, "labels": torch.from_numpy(self.labels[rows]), **target}

    def ground_truth(self, indices: Sequence[int] | None = None) -> dict[str, Any]:
        """Return what COCO's evaluation compares results with.

        Args:
            indices: of the images; all of them when None.

        Returns:
            A dict of ``images``, ``annotations`` and ``categories`` as pycocotools and faster-coco-eval take it:
            annotations are numbered from 1, boxes and segmentations are the file's own, crowds are among them.
        """
        indices = range(len(self)) if indices is None else indices
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in indices:
            height, width = self.sizes[i].tolist()
            name = os.fsdecode(self.files[i])
            images.append({"id": self.number(i), "file_name": name, "height": height, "width": width})
            for row in range(self.starts[i], self.starts[i + 1]):
                annotations.append({"id": len(annotations) + 1, "image_id": self.number(i), **self._annotation(i, row)})
        categories = [
            {"id": number, "name": name} for number, name in zip(self.category_ids, self.classes, strict=True)
        ]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}

    def _annotation(self, i: int, row: int) -> dict[str, Any]:
        box = self.boxes[row].tolist()
        annotation = {
            "category_id": self.category_ids[self.labels[row]],
            "bbox": box,
            "iscrowd": int(self.crowd[row]),
            "area": float(self.areas[row]),
        }
        if self.segmentations is not None:
            annotation["segmentation"] = unpack(self.segmentations[row])
        if np.isnan(self.areas[row]):
            height, width = self.sizes[i].tolist()
            drawn = annotation.get("segmentation")
            annotation["area"] = float(box[2] * box[3] if drawn is None else mask_area(drawn, (height, width)))
        return annotation


def open_instances(
    path: str | Path | None,
    split: str,
    *,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    masks: bool = False,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
) -> Instances:
    """Open one split of a data set in COCO's format; no image is decoded yet.

    Args:
        path: the folder of COCO's own layout (``annotations/instances_train2017.json`` and ``train2017/``), of
            ``instances_train.json`` and ``images/``, or of Roboflow's (``train/_annotations.coco.json``).
        split: "train", "val", "test" or another word in these names; Roboflow's "valid" is "val".
        annotations: the JSON file, where it lies elsewhere.
        images: the folder of the images, where it lies elsewhere.
        masks: the instances' masks too. Annotations that have none are then dropped.
        classes: label names that the labels must follow, such as a checkpoint's; matched by name.
        limit: take this many images, the first of a fixed shuffled order that has every class early.

    Returns:
        The images; what was wrong with some of them or of their annotations is in ``problems``, of the whole file.

    Raises:
        FreqFormerError: a file is missing or of another form, nothing in it is usable, the classes are others, or
            the limit is wrong.
        MissingExtra: masks need faster-coco-eval.
    """
    if limit is not None and limit < 1:
        raise FreqFormerError(f"the number of images to train on must be at least 1, not {limit}")
    if masks:
        require_library()
    file = find_annotations(path, split, annotations)
    problems: Counter[str] = Counter()
    records = read_records(file, problems, masks=masks)
    root = find_images(file, path, split, images, records.files)
    fill_sizes(root, records.files, records.sizes, problems)
    names, category_ids = _follow(file, records, classes)
    label_of = {number: label for label, number in enumerate(category_ids)}
    table = usable(records, label_of, problems, masks=masks)
    count = len(records.files)
    if records.annotations and not len(table.rows):
        reasons = ", ".join(f"{times} {phrase}" for phrase, times in problems.items())
        raise FreqFormerError(f"{file}: none of its {len(records.annotations)} annotations is usable: {reasons}")
    if empty := count - len(np.unique(table.rows)):
        problems["images without annotations (kept)"] = empty
    chosen = np.arange(count)
    if limit is not None and limit < count:
        chosen = _varied_order(count, table.rows, table.labels)[:limit]
    place = np.full(count, -1)
    place[chosen] = np.arange(len(chosen))
    kept = np.flatnonzero(place[table.rows] >= 0)
    kept = kept[np.argsort(place[table.rows[kept]], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(place[table.rows[kept]], minlength=len(chosen)))])
    return Instances(
        classes=names,
        category_ids=category_ids,
        root=root,
        problems=dict(problems),
        files=Packed.of(os.fsencode(records.files[i]) for i in chosen),
        ids=_id_array([records.ids[i] for i in chosen]),
        sizes=records.sizes[chosen],
        starts=starts,
        labels=table.labels[kept],
        boxes=table.boxes[kept],
        areas=table.areas[kept],
        crowd=table.crowd[kept],
        segmentations=Packed.of(table.packed[row] for row in kept) if masks else None,
    )


def _id_array(ids: list[int | str]) -> np.ndarray:
    # Beyond int64 they are objects too.
    small = all(type(number) is int and abs(number) < 1 << 62 for number in ids)
    return np.array(ids, dtype=np.int64 if small else object)


def _follow(file: Path, records: Records, classes: Sequence[str] | None) -> tuple[list[str], list[int]]:
    """The label names in order, and the file's id of each; those that it does not know get ids of their own."""
    if classes is None:
        return list(records.categories.values()), list(records.categories)
    id_of = {name: number for number, name in records.categories.items()}
    used = {record.category_id for record in records.annotations if record and type(record.category_id) is int}
    if unknown := [name for name, number in id_of.items() if number in used and name not in set(classes)]:
        some = ", ".join([*map(printable, classes[:5]), *(["..."] if len(classes) > 5 else [])])
        raise FreqFormerError(
            f"{file} has annotations of {unknown[0]!r}, which is not among the model's {len(classes)} classes "
            f"({some}); use the data set that it was trained on"
        )
    free = itertools.count(max(records.categories) + 1)
    return list(classes), [id_of[name] if name in id_of else next(free) for name in classes]


def _varied_order(count: int, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Shuffle images in a fixed way, such that every class is early in the order, and often where it can be.

    Args:
        count: of the images.
        rows, labels: image and class of each annotation, int64 (M,).

    Returns:
        A permutation of 0..count-1, int64 (count,). In turn each class that fewer than one image has so far, the
        rarest first, brings its next image, then each that fewer than two have, and so on; images without a class are
        a class of their own, the last.
    """
    # RandomState's streams are frozen, those of NumPy's newer generators are not.
    shuffled = np.random.RandomState(0).permutation(count)
    place = np.argsort(shuffled)
    nothing = int(labels.max(initial=-1)) + 1
    bare = np.setdiff1d(np.arange(count), rows)
    pairs = np.unique(np.stack([np.append(labels, np.full(len(bare), nothing)), place[np.append(rows, bare)]]), axis=1)
    images_of = [deque(pairs[1, pairs[0] == label].tolist()) for label in range(nothing + 1)]
    order = np.argsort(pairs[1], kind="stable")
    classes_of = np.split(pairs[0, order], np.cumsum(np.bincount(pairs[1], minlength=count))[:-1])
    by_rarity = sorted(range(nothing), key=lambda label: len(images_of[label]))
    seen, taken = np.zeros(nothing + 1, dtype=np.int64), np.zeros(count, dtype=bool)
    chosen: list[int] = []
    for wanted in range(1, count + 1):
        if len(chosen) == count:
            break
        for label in (*by_rarity, nothing):
            while seen[label] < wanted and images_of[label]:
                image = images_of[label].popleft()
                if not taken[image]:
                    taken[image] = True
                    seen[classes_of[image]] += 1
                    chosen.append(image)
    return shuffled[chosen]
