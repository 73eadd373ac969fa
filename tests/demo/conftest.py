"""What the tests of the demo share: models of every task in files, and images that harm those who trust them."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from freqformer import create_model
from freqformer.checkpoints import save_model
from freqformer.demo import load
from freqformer.factory import describe_model


@pytest.fixture(scope="session")
def write_classifier(tmp_path_factory):
    """Write a classifier with random weights as a run leaves it, and return its folder."""

    def write(arch="test_freqformer", labels=("ape", "bee", "cat", "dog"), size=32):
        torch.manual_seed(0)
        model = create_model(arch, num_classes=len(labels), img_size=size)
        for parameter in model.head.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        folder = tmp_path_factory.mktemp("classifier")
        save_model(folder, model.state_dict(), describe_model(model, {}, labels))
        return folder

    return write


@pytest.fixture(scope="session")
def subjects(write_classifier, make_detector, make_segmenter, tmp_path_factory):
    """A model of each task."""
    folder = tmp_path_factory.mktemp("dense")
    return {
        "classification": load(write_classifier()),
        "detection": load(make_detector(folder / "detector")),
        "segmentation": load(make_segmenter(folder / "segmenter")),
    }


@pytest.fixture(scope="session")
def photo():
    """A picture with something at every frequency."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3))
    pixels[8:30, 10:40] = (220, 40, 40)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="session")
def hollow_png():
    """The bytes of a PNG whose header promises a size, without any pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def make(width, height):
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")

    return make
