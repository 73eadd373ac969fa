"""Samples of folders in which some images cannot be read."""

import io
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor

from freqformer.data import Samples, UnreadableImage, collate, open_images, printable
from freqformer.data.images import Images
from freqformer.errors import FreqFormerError

RANDOM = np.random.RandomState(0).randint(0, 255, (24, 24, 3), np.uint8)


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def bomb():
    """A small PNG file that announces 400 million pixels."""
    content = encoded(Image.new("L", (8, 8)), "PNG")
    header = struct.pack(">II", 20_000, 20_000) + content[24:29]
    return content[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + content[33:]


PICTURE = Image.fromarray(RANDOM)
SOUND = {
    "plain.jpg": encoded(PICTURE, "JPEG"),
    "cmyk.jpg": encoded(PICTURE.convert("CMYK"), "JPEG"),
    "palette.png": encoded(PICTURE.quantize(8), "PNG", transparency=bytes([0, 128, 255])),
    "palette.gif": encoded(PICTURE.quantize(8), "GIF"),
    "16 bit.png": encoded(Image.fromarray(RANDOM[..., 0].astype(np.uint16) * 257), "PNG"),
    "16 bit.tif": encoded(Image.fromarray(RANDOM[..., 0].astype(np.uint16) * 257), "TIFF"),
    "two levels.png": encoded(PICTURE.convert("1"), "PNG"),
    "transparent.webp": encoded(PICTURE.convert("RGBA"), "WEBP"),
    "animated.gif": encoded(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(90)]),
    "animated.png": encoded(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(90)]),
    "animated.webp": encoded(PICTURE, "WEBP", save_all=True, append_images=[PICTURE.rotate(90)]),
    "png in disguise.jpg": encoded(PICTURE, "PNG"),
    "with a\nline break.png": encoded(PICTURE, "PNG"),
    "ü 日本.png": encoded(PICTURE, "PNG"),
    "bytes \udcff\udcfe.png": encoded(PICTURE, "PNG"),
    "-rf.png": encoded(PICTURE, "PNG"),
    'a,b;"c".png': encoded(PICTURE, "PNG"),
}
BAD = {
    "empty.jpg": b"",
    "text.png": b"no image",
    "cut.jpg": SOUND["plain.jpg"][:300],
    "cut.png": SOUND["-rf.png"][:200],
    "cut.webp": SOUND["transparent.webp"][:200],
    "cut.gif": SOUND["palette.gif"][:200],
    "cut.tif": SOUND["16 bit.tif"][:20],
    "bomb.png": bomb(),
    "float.tif": encoded(Image.fromarray(RANDOM[..., 0].astype(np.float32)), "TIFF"),
    "bad \udcff\nname.png": b"no image",
}


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "class").mkdir(parents=True)
        for name, content in {**SOUND, **BAD}.items():
            (tmp_path / split / "class" / name).write_bytes(content)
        os.symlink(tmp_path / split / "class/plain.jpg", tmp_path / split / "class/link.jpg")
        os.symlink(tmp_path / "nowhere.jpg", tmp_path / split / "class/broken link.jpg")
        os.symlink("circle.jpg", tmp_path / split / "class/circle.jpg")
        (tmp_path / split / "class/locked").mkdir()
    return tmp_path


BROKEN = {*BAD, "broken link.jpg", "circle.jpg"}
COUNT = len(SOUND) + 1 + len(BROKEN)


def to_tensor(image):
    assert (image.mode, image.size) == ("RGB", (24, 24))
    return pil_to_tensor(image).float()


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_bad_images_out(folder, workers):
    samples = Samples(open_images("FOLDER", folder, "val"), to_tensor)
    assert len(samples) == COUNT
    batches = list(DataLoader(samples, 5, collate_fn=collate, num_workers=workers))
    assert sum(len(batch["target"]) for batch in batches) == COUNT - len(BROKEN)
    assert all(len(batch["image"]) == len(batch["target"]) == len(batch["index"]) for batch in batches)
    bad = dict(one for batch in batches for one in batch.get("bad", []))
    assert {os.path.basename(name) for name in bad} == BROKEN
    assert all(reason and "\n" not in reason for reason in bad.values())
    assert "400000000 pixels" in bad[str(folder / "val/class/bomb.png")]
    assert "0 bytes" in bad[str(folder / "val/class/empty.jpg")]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_keeps_its_batches_whole(folder, workers):
    samples = Samples(open_images("FOLDER", folder, "train"), to_tensor, seed=3)
    keys = [
        [(epoch, index) for index in range(first, first + 6)] for epoch in (0, 1) for first in range(0, COUNT - 6, 6)
    ]
    loader = DataLoader(samples, batch_sampler=keys, collate_fn=collate, num_workers=workers)
    batches = list(loader)
    assert {batch["image"].shape for batch in batches} == {(6, 3, 24, 24)}
    seen = {os.path.basename(samples.images.name(i)) for batch in batches for i in batch["index"].tolist()}
    assert not seen & BROKEN
    for batch, again in zip(batches, loader, strict=True):
        assert torch.equal(batch["image"], again["image"])
        assert torch.equal(batch["index"], again["index"])
        assert batch.get("bad") == again.get("bad")


def test_replacements_differ_by_epoch_and_seed(folder):
    images = open_images("FOLDER", folder, "train")
    names = [os.path.basename(images.name(i)) for i in range(len(images))]
    index = names.index("text.png")
    taken = {
        (seed, epoch): Samples(images, to_tensor, seed)[epoch, index]["index"]
        for seed in range(4)
        for epoch in range(9)
    }
    assert len(set(taken.values())) > 5
    assert taken == {key: Samples(images, to_tensor, key[0])[key[1], index]["index"] for key in taken}


def read(bad, row):
    if row in bad:
        raise UnreadableImage(f"row {row}", "it is bad")
    return Image.new("RGB", (2, 2), (row, 0, 0))


class Part:
    """Picklable, unlike a closure."""

    def __init__(self, bad):
        self.bad = bad

    def __call__(self, row):
        return read(self.bad, row)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.data())
def test_any_part_may_be_bad(n, data):
    bad = data.draw(st.sets(st.integers(0, n - 1)))
    images = Images(["x"], np.zeros(n, np.int64), np.arange(n), Part(bad), str)
    samples = Samples(images, lambda image: torch.tensor(float(image.getpixel((0, 0))[0])))
    batch = collate([samples[i] for i in range(n)])
    assert batch["index"].tolist() == [i for i in range(n) if i not in bad]
    assert batch["image"].tolist() == batch["index"].tolist()
    assert batch.get("bad", []) == [(f"row {i}", "it is bad") for i in sorted(bad)]
    trained = collate([samples[5, i] for i in range(n)])
    assert not set(trained["index"].tolist()) & bad
    assert set(trained.get("bad", [])) <= set(batch.get("bad", []))
    if len(bad) <= n // 2:
        assert len(trained["target"]) == n  # 20 draws in a row miss by one in a million.
    if len(bad) == n:
        assert len(trained["target"]) == 0


def test_a_class_may_have_nothing_but_bad_images(tmp_path):
    for label, content in (("ant", SOUND["plain.jpg"]), ("bee", b"")):
        (tmp_path / "val" / label).mkdir(parents=True)
        (tmp_path / "val" / label / "0.jpg").write_bytes(content)
    images = open_images("FOLDER", tmp_path, "val")
    assert images.classes == ["ant", "bee"]
    assert len(collate([Samples(images, to_tensor)[i] for i in range(2)])["target"]) == 1


def test_an_unreadable_image_is_one_printable_line():
    error = pickle.loads(pickle.dumps(UnreadableImage("a\nb\udcff.png", "bad\x00\nthing")))
    assert isinstance(error, FreqFormerError)
    assert error.name == "a\nb\udcff.png"
    assert str(error) == r"cannot read image a\nb\udcff.png: bad\x00\nthing"


@given(st.text(st.characters(codec=None)))
def test_printable_names_can_be_written_anywhere(name):
    assert printable(name).isprintable()
    printable(name).encode("utf-8")
