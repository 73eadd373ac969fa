"""The folder that the docs' commands and snippets run in: miniatures of the data, weights and runs they name."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from freqformer.cli import main

CLASSES = ("ants", "bees", "wasps")
SHORT = "--epochs 1 --batch-size 4 --num-workers 0 --accelerator cpu --devices 1 --overwrite"
"""The flags that make any training a matter of a second or two."""
SMALL = {
    "train": f"--arch test_freqformer --limit-train 8 {SHORT}",
    "adapt": f"--encoder test_vit --no-pretrained --input-size 32 --limit-train 8 {SHORT}",
    "detect train": f"--arch test_gfnet_h --input-size 48 64 --train-sizes 48 --fpn-channels 8 --proposals 20 {SHORT}",
    "segment train": f"--arch test_gfnet_h --input-size 32 48 --decoder-args.decoder_pyramid_channels 16 {SHORT}",
}
"""What is put after a command of training."""
EXPORTED = "export --model-path runs/photos --dynamic-size photos.onnx"
"""A command of several pages, which takes its time."""


def call(*words):
    """The command line in this process; its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code or 0


@pytest.fixture(scope="session")
def small():
    """The flags that shorten a command of training."""
    return SMALL


@pytest.fixture(scope="session")
def freqformer_command():
    """Call the command line in this process, and return its exit code."""
    return call


@pytest.fixture(scope="session")
def miniature(tmp_path_factory, make_vtab, make_instances, make_scenes):
    """The data sets and images, by the names that the docs use; to be read only."""
    root = tmp_path_factory.mktemp("miniature")
    for name, side in (("photos", 64), ("flowers", 64), ("ILSVRC2012", 64)):
        for split, count in (("train", 4), ("val", 2)):
            for target, label in enumerate(CLASSES):
                folder = root / name / split / label
                folder.mkdir(parents=True)
                for number in range(count):
                    _image(target, [target, number, count], side).save(folder / f"{number}.jpg")
    make_instances(root / "bccd", train=4, val=2)
    shutil.copytree(root / "bccd/val", root / "bccd/test")
    shutil.copy(root / "bccd/instances_val.json", root / "bccd/instances_test.json")
    make_scenes(root / "camvid", train=4, val=2)
    for path in (root / "camvid").glob("*/masks/*.png"):
        # CamVid's void is 11.
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 255, 11, mask).astype(np.uint8)).save(path)
    shutil.copytree(root / "camvid/val", root / "camvid/test")
    make_vtab(root / "vtab-1k", ("cifar100",))
    for number, name in enumerate(("a.png", "b.png", "a.jpg", "b.jpg", "picture.jpg")):
        _image(number % 3, [9, number], 64).save(root / name)
    return root


@pytest.fixture(scope="session")
def workplace(miniature, tmp_path_factory):
    """The miniature with weights and finished runs; to be copied, not changed."""
    root = tmp_path_factory.mktemp("workplace") / "template"
    shutil.copytree(miniature, root)
    _gfnet(root / "gfnet-xs.pth")
    before = Path.cwd()
    os.chdir(root)
    try:
        for words, folder in (
            ("train --data-set FOLDER --data-path photos --input-size 64", "runs/photos"),
            ("detect train --recipe small_retinanet --data-path bccd", "runs/cells"),
            ("segment train --recipe small_fpn --data-path camvid --ignore-index 11", "runs/streets"),
        ):
            kind = " ".join(word for word in words.split()[:2] if not word.startswith("--"))
            assert call(*words.split(), *SMALL[kind].split(), "--output-dir", folder) == 0
        assert call(*EXPORTED.split()) == 0
    finally:
        os.chdir(before)
    shutil.copytree(root / "runs/photos", root / "runs/mine")
    return root


def _image(target, seed, side):
    noise = np.random.default_rng(seed).integers(0, 80, (side, side + 8, 3))
    noise[..., target] += 150
    return Image.fromarray(noise.astype(np.uint8))


def _gfnet(path):
    """A gfnet_xs of random weights under the official code's names, with the classes of the miniature."""
    import freqformer

    torch.manual_seed(0)
    state = freqformer.create_model("gfnet_xs", num_classes=len(CLASSES)).state_dict()
    names = (
        (r"^stem\.proj", "patch_embed.proj"),
        (r"^stages\.0\.(blocks\.\d+)\.token_mixer", r"\1.filter"),
        (r"^stages\.0\.blocks", "blocks"),
    )
    official = {}
    for key, tensor in state.items():
        for pattern, name in names:
            key = re.sub(pattern, name, key)
        official[key] = tensor.flatten(1, 2) if key == "pos_embed" else tensor
    torch.save({"model": official}, path)
