"""Where the kernels of the lowering ``triton`` run: on a GPU, or else in Triton's interpreter.

And what several tests share: the golden vectors, the weights they were made with, a miniature of VTAB-1k, small data
sets and models of detection and segmentation.
"""

import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

if not torch.cuda.is_available():
    # Triton reads it when it is first imported, which nothing has done yet.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def make_vtab():
    """Write tasks of VTAB-1k as miniatures in the usual layout, and return the folder above them.

    ``make_vtab(root, tasks, size=(H, W), count=N, labels=L)``: N images of (H, W) in train800, N // 4 in val200 and
    N // 2 in test, of the first L classes in turn, which differ in colour; with ``both=False`` there is no
    train800val200.txt.
    """
    from freqformer.data import VTAB_TASKS

    def make(root, tasks=("cifar100",), size=(24, 24), count=16, labels=3, both=True):
        for task in tasks:
            folder = root / VTAB_TASKS[task].folder
            lists = {"train800": count, "val200": count // 4, "test": count // 2}
            lines = {}
            for split, images in lists.items():
                part = "test" if split == "test" else "train800val200"
                (folder / "images" / part).mkdir(parents=True, exist_ok=True)
                first = count if split == "val200" else 0
                lines[split] = []
                for number in range(first, first + images):
                    target = number % min(labels, VTAB_TASKS[task].classes)
                    noise = np.random.default_rng([number, images]).integers(0, 40, (*size, 3))
                    noise[..., target % 3] += 100 + 10 * target
                    path = f"images/{part}/{number:06d}.jpg"
                    Image.fromarray(noise.astype(np.uint8)).save(folder / path, quality=95)
                    lines[split].append(f"{path} {target}\n")
            if both:
                lines["train800val200"] = lines["train800"] + lines["val200"]
            for split, rows in lines.items():
                (folder / f"{split}.txt").write_text("".join(rows))
        return root

    return make


def _shared():
    beside = Path(__file__).resolve().parents[1] / ".." / "shared"
    return Path(os.environ.get("FREQFORMER_SHARED", beside))


@pytest.fixture(scope="session")
def golden():
    """Read a golden case, such as ``models/gfnet-ti``; the test is skipped where the vectors are absent."""
    folder = _shared() / "golden"
    if not folder.is_dir():
        pytest.skip(f"the golden vectors are not at {folder}; set FREQFORMER_SHARED to the folder that holds golden/")

    def read(case):
        return json.loads((folder / f"{case}.json").read_text())

    return read


def _normal(shape, seed):
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)


def _weight(key, shape):
    """One tensor by the golden README's rules."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    z = _normal(shape, zlib.crc32(key.encode()))
    if key.endswith("running_var"):
        z = 1 + 0.1 * np.abs(z)
    elif key.endswith("running_mean"):
        z = 0.1 * z
    elif any(word in key.rpartition(".")[2] for word in ("complex_weight", "filter_weight")):
        z = 0.5 * z
    elif any(word in key for word in ("pos_embed", "cls_token", "position_embeddings")):
        z = 0.2 * z
    elif "ssf_shift" in key:
        z = 0.1 * z
    elif "ssf_scale" in key:
        z = 1 + 0.1 * z
    elif len(shape) <= 1 or math.prod(shape) == 1:
        z = 0.1 * z if key.endswith("bias") else 1 + 0.1 * z
    else:
        z = z / math.sqrt(math.prod(shape[1:]))  # a Python number: the division stays in float32
    return torch.from_numpy(np.asarray(z, dtype=np.float32))


@pytest.fixture(scope="session")
def golden_state():
    """Make an official state dict from its shapes, as float32."""
    return lambda shapes: {key: _weight(key, tuple(shape)) for key, shape in shapes.items()}


@pytest.fixture(scope="session")
def golden_input():
    """Make the input of a golden case, as float32."""
    return lambda shape: torch.from_numpy(_normal(tuple(shape), 0))


@pytest.fixture(scope="session")
def make_instances():
    """Write a small data set in COCO's format, and return its folder.

    ``make_instances(root, train=8, val=5)``: images of sizes about 48x64, or all of that size with ``same=True``, with
    one to three rectangles and ellipses in their own colours, category ids 3 and 7, polygons and boxes.
    """

    def make(root, train=8, val=5, splits=("train", "val"), same=False):
        for split, count in zip(splits, (train, val), strict=True):
            (root / split).mkdir(parents=True)
            images, annotations = [], []
            for number in range(count):
                random = np.random.default_rng([number, count])
                width, height = (64, 48) if same else (64 + 8 * (number % 3), 48 + 4 * (number % 2))
                picture = Image.fromarray(random.integers(60, 120, (height, width, 3)).astype(np.uint8))
                draw = ImageDraw.Draw(picture)
                for _ in range(1 + number % 3):
                    left, top = int(random.integers(0, width - 28)), int(random.integers(0, height - 24))
                    w, h = int(random.integers(14, 27)), int(random.integers(12, 23))
                    kind = int(random.integers(2))
                    (draw.rectangle, draw.ellipse)[kind]((left, top, left + w - 1, top + h - 1), fill=_FILLS[kind])
                    corners = [left, top, left + w, top, left + w, top + h, left, top + h]
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": 10 + number,
                            "category_id": (3, 7)[kind],
                            "bbox": [left, top, w, h],
                            "area": w * h,
                            "iscrowd": 0,
                            "segmentation": [corners],
                        }
                    )
                name = f"{number}.jpg"
                picture.save(root / split / name, quality=95)
                images.append({"id": 10 + number, "file_name": name, "height": height, "width": width})
            categories = [{"id": 3, "name": "box"}, {"id": 7, "name": "disc"}]
            content = {"images": images, "annotations": annotations, "categories": categories}
            (root / f"instances_{split}.json").write_text(json.dumps(content))
        return root

    return make


@pytest.fixture(scope="session")
def make_scenes():
    """Write a small data set of images and masks, and return its folder.

    ``make_scenes(root, train=8, val=5)``: images of sizes about 48x64 of ground, boxes and discs, and a border that is
    ignored, with a ``classes.txt``.
    """

    def make(root, train=8, val=5, splits=("train", "val")):
        for split, count in zip(splits, (train, val), strict=True):
            for part in ("images", "masks"):
                (root / split / part).mkdir(parents=True)
            for number in range(count):
                random = np.random.default_rng([number, count, 1])
                width, height = 64 + 8 * (number % 3), 48 + 4 * (number % 2)
                picture = Image.fromarray(random.integers(60, 120, (height, width, 3)).astype(np.uint8))
                mask = Image.new("L", (width, height))
                for _ in range(3):
                    left, top = int(random.integers(0, width - 28)), int(random.integers(0, height - 24))
                    kind = int(random.integers(2))
                    for image, fill in ((picture, _FILLS[kind]), (mask, kind + 1)):
                        draw = ImageDraw.Draw(image)
                        (draw.rectangle, draw.ellipse)[kind]((left, top, left + 24, top + 20), fill=fill)
                ImageDraw.Draw(mask).rectangle((0, 0, width - 1, height - 1), outline=255)
                picture.save(root / split / "images" / f"{number}.jpg", quality=95)
                mask.save(root / split / "masks" / f"{number}.png")
        (root / "classes.txt").write_text("ground\nbox\ndisc\n")
        return root

    return make


_FILLS = ((220, 40, 40), (40, 60, 230))


@pytest.fixture(scope="session")
def make_detector():
    """Write a detector with random weights as a run leaves it, and return its folder."""

    def make(folder, detector="maskrcnn", label_names=("box", "disc"), category_ids=(3, 7), **more):
        pytest.importorskip("segmentation_models_pytorch", reason="the extra dense is not installed")
        from freqformer.checkpoints import save_model
        from freqformer.dense import create_detector, describe_dense

        torch.manual_seed(0)
        small = {"fpn_channels": 8, "anchor_sizes": [8, 16, 24, 32, 48], "proposals": 20, "size": (48, 80)}
        model = create_detector("test_gfnet_h", label_names, detector=detector, **{**small, "score_thr": 0.0, **more})
        folder.mkdir(parents=True)
        save_model(folder, model.state_dict(), describe_dense(model, category_ids=list(category_ids)))
        return folder

    return make


@pytest.fixture(scope="session")
def make_segmenter():
    """Write a segmenter with random weights as a run leaves it, and return its folder."""

    def make(folder, label_names=("ground", "box", "disc"), test_mode="whole", shorter_side=None, **more):
        pytest.importorskip("segmentation_models_pytorch", reason="the extra dense is not installed")
        from freqformer.checkpoints import save_model
        from freqformer.data.class_names import default_palette
        from freqformer.dense import create_segmenter, describe_dense

        torch.manual_seed(0)
        small = {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 64}
        model = create_segmenter("test_gfnet_h", label_names, decoder_args=small, **more)
        for parameter in model.net.segmentation_head.parameters():
            torch.nn.init.normal_(parameter)
        folder.mkdir(parents=True)
        about = {"palette": default_palette(len(label_names)).tolist(), "window": [32, 32]}
        about |= {"test_mode": test_mode, "shorter_side": shorter_side}
        save_model(folder, model.state_dict(), describe_dense(model, **about))
        return folder

    return make
