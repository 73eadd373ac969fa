"""The gallery's pictures are what the code draws of the committed networks."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", DOCS / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_pictures_of_the_gallery_are_the_codes(gallery, tmp_path):
    gallery.draw(tmp_path)
    committed = sorted(path.name for path in (DOCS / "pictures").glob("gallery-*.png"))
    assert committed == sorted(path.name for path in tmp_path.iterdir())
    for name in committed:
        with Image.open(DOCS / "pictures" / name) as old, Image.open(tmp_path / name) as new:
            # Another matplotlib or another processor moves a line by a pixel.
            assert np.abs(np.subtract(old.size, new.size)).max() <= 12, name
            pixels = [np.asarray(one.convert("L").resize((64, 64)), dtype=float) for one in (old, new)]
            assert np.abs(pixels[0] - pixels[1]).mean() < 6, name
