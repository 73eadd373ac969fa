"""Where the kernels of the lowering ``triton`` run: on a GPU, or else in Triton's interpreter.

And what several tests share: the golden vectors, the weights they were made with, a miniature of VTAB-1k.
"""

import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
