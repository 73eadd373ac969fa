"""Where the kernels of the lowering ``triton`` run, a GPU or else Triton's interpreter; a miniature of VTAB-1k."""

import os

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
