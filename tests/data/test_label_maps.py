import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from freqformer.data import LabelMaps, Region, Samples, labels_in, open_images, seeded, train_transform
from freqformer.data.label_maps import Description, map_path, map_size, read_description, write_map
from freqformer.errors import FreqFormerError

NORM = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
PLACES = {"teacher": "t", "weights": "timm", "num_classes": 3, "top_k": 2, "grid": [2, 3], "input_size": [32, 32]}


def ramps(height, width):
    """An image whose red says the column and whose green says the row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, np.full_like(rows, 255)], axis=-1).astype(np.uint8))


def expected(region, size, source):
    """Where in the source (row, column) the middle of each pixel of the result comes from."""
    y0, x0, y1, x1 = region.box.tolist()
    rows = (y0 + (y1 - y0) * (torch.arange(size[0]) + 0.5) / size[0]) * source[0] - 0.5
    columns = (x0 + (x1 - x0) * (torch.arange(size[1]) + 0.5) / size[1]) * source[1] - 0.5
    return rows, columns


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(40, 40), (48, 64), (32, 32), (16, 24)]),
    st.tuples(st.integers(60, 250), st.integers(60, 250)),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["random", "crop", "squash"]),
)
def test_a_region_follows_crops_flips_and_resizing_to_the_pixel(seed, size, source, hflip, vflip, resize):
    given = {"interpolation": "bilinear", "resize": resize, "on_device": True}
    transform = train_transform(size, hflip=float(hflip), vflip=float(vflip), **given, **NORM)
    with seeded(seed):
        image, region = transform(ramps(*source), Region.whole(source))
    assert image.shape == (3, *size)
    assert region.tolist()[4:] == list(size)
    rows, columns = expected(region, size, source)
    shown = image[2] == 255  # zeros are put around small images
    inside = (rows > 4) & (rows < source[0] - 5)
    within = (columns > 4) & (columns < source[1] - 5)
    both = inside[:, None] & within & shown
    assert both.any()
    # Rounding to bytes, and the edge of the crop, where the filter of the resizing is cut off.
    slack = 1.0 + max(source[0] / size[0], source[1] / size[1])
    assert (image[1][both] - rows[:, None].expand(size)[both]).abs().max() <= slack
    assert (image[0][both] - columns.expand(size)[both]).abs().max() <= slack
    middle = (image[0].float() - columns)[both].mean().abs()
    assert middle < 1


def test_the_image_is_the_same_with_a_region_beside_it():
    picture = ramps(90, 70)
    for seed in range(10):
        transform = train_transform((48, 48), vflip=0.5, reprob=0.5, **NORM)
        with seeded(seed):
            alone = transform(picture)
        with seeded(seed):
            beside, _ = transform(picture, Region.whole((90, 70)))
        assert torch.equal(alone, beside)


def ramp_map(height, width):
    """A map of two classes whose logits say the column and the row."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    scores = torch.stack([columns / width, rows / height])
    return torch.stack([scores, torch.tensor([0.0, 1.0])[:, None, None].expand(2, height, width)])[None]


@given(
    st.tuples(st.floats(0.1, 0.4), st.floats(0.1, 0.4), st.floats(0.6, 0.9), st.floats(0.6, 0.9)),
    st.sampled_from([(1, 1), (4, 4), (3, 7)]),
    st.booleans(),
    st.booleans(),
)
def test_labels_are_read_where_the_region_lies(box, grid, hflip, vflip):
    y0, x0, y1, x1 = box
    box = torch.tensor([[y1 if vflip else y0, x1 if hflip else x0, y0 if vflip else y1, x0 if hflip else x1]])
    found = labels_in(ramp_map(20, 30), box, grid, 3)
    assert found.shape == (1, 3, *grid)
    logits = (found / found[:, 2:]).log()[0]  # the third class has the logit 0
    y0, x0, y1, x1 = box[0].tolist()
    rows = y0 + (y1 - y0) * (torch.arange(grid[0]) + 0.5) / grid[0]
    columns = x0 + (x1 - x0) * (torch.arange(grid[1]) + 0.5) / grid[1]
    torch.testing.assert_close(logits[0], columns.expand(grid), atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[1], rows[:, None].expand(grid), atol=1e-4, rtol=0)


def write_maps(folder, root, images, classes=3):
    Description(**{**PLACES, "num_classes": classes}).write(folder)
    for i in range(len(images)):
        path = map_path(folder, root, images.name(i))
        best = torch.stack([torch.full((2, 3), i % classes), torch.full((2, 3), (i + 1) % classes)])
        write_map(path, torch.full((2, 2, 3), float(i)), best)
        assert path.stat().st_size == map_size(read_description(folder))


def pictures(root, names=("a/0", "a/1.x", "b/0")):
    for split in ("train", "val"):
        for name in names:
            path = root / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            ramps(40, 50).save(path)
    return open_images("FOLDER", root, "train")


def test_maps_are_found_by_the_image_they_belong_to(tmp_path):
    images = pictures(tmp_path / "data")
    write_maps(tmp_path / "maps", tmp_path / "data", images)
    assert (tmp_path / "maps/train/a/1.x.safetensors").is_file()
    maps = LabelMaps(tmp_path / "maps", tmp_path / "data", 3)
    for i in range(3):
        assert torch.equal(maps.load(images.name(i))[0], torch.full((2, 2, 3), float(i)))
    samples = Samples(images, train_transform((40, 40), **NORM), label_maps=maps)
    sample = samples[(0, 1, 0)]
    assert sample["label_map"].shape == (2, 2, 2, 3)
    assert sample["region"].shape == (4,)
    assert not torch.equal(samples[(0, 1, 1)]["region"], sample["region"])  # a repeat is augmented anew
    assert torch.equal(samples[(0, 1)]["region"], sample["region"])


def test_names_that_are_no_paths_stay_inside_the_folder(tmp_path):
    assert map_path(tmp_path, None, "cifar10/train/000003") == tmp_path / "cifar10/train/000003.safetensors"
    assert map_path(tmp_path, tmp_path / "root", "../../etc/x.y") == tmp_path / "etc/x.y.safetensors"
    assert map_path(tmp_path, None, "/etc/x") == tmp_path / "etc/x.safetensors"


def test_published_maps_are_read(tmp_path):
    images = pictures(tmp_path / "data", ("a/0", "b/0"))
    stored = torch.stack([torch.randn(5, 4, 4), torch.randint(0, 2, (5, 4, 4)).float()]).half()
    for i, path in enumerate(("a/0.pt", "b/0.pt")):
        (tmp_path / "maps" / path).parent.mkdir(parents=True)
        torch.save(stored + 0 * i, tmp_path / "maps" / path)
    maps = LabelMaps(tmp_path / "maps", tmp_path / "data", 2)
    assert torch.equal(maps.load(images.name(1)), stored.float())


class Harmful:
    def __reduce__(self):
        return print, ("harm",)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "there is no label map .*0.safetensors"),
        (lambda path: path.write_bytes(b""), "cannot read the label map .*0.safetensors"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "cannot read the label map .*0.safetensors"),
        (lambda path: write_map(path, torch.zeros(2, 3, 3), torch.zeros(2, 3, 3)), "0.safetensors has the shape"),
        (lambda path: write_map(path, torch.zeros(2, 2, 3), torch.full((2, 2, 3), 3)), "0.safetensors names classes"),
    ],
)
def test_a_map_that_cannot_be_used_is_named(tmp_path, spoil, message):
    images = pictures(tmp_path / "data")
    write_maps(tmp_path / "maps", tmp_path / "data", images)
    spoil(tmp_path / "maps/train/a/0.safetensors")
    with pytest.raises(FreqFormerError, match=message):
        LabelMaps(tmp_path / "maps", tmp_path / "data", 3).load(images.name(0))


def test_published_maps_are_never_unpickled(tmp_path, capsys):
    (tmp_path / "maps/a").mkdir(parents=True)
    torch.save(Harmful(), tmp_path / "maps/a/0.pt")
    torch.save(torch.zeros(3), tmp_path / "maps/a/1.pt")
    maps = LabelMaps(tmp_path / "maps", None, 3)
    with pytest.raises(FreqFormerError, match=r"0\.pt"):
        maps.load("a/0.png")
    with pytest.raises(FreqFormerError, match=r"1\.pt is not a label map"):
        maps.load("a/1.png")
    assert capsys.readouterr().out == ""


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(FreqFormerError, match="no folder of label maps"):
        LabelMaps(tmp_path / "none", None, 3)
    Description(**PLACES).write(tmp_path)
    with pytest.raises(FreqFormerError, match="have 3 classes and the data 4"):
        LabelMaps(tmp_path, None, 4)
    (tmp_path / "labelmaps.json").write_text(json.dumps({"teacher": "t"}))
    with pytest.raises(FreqFormerError, match=r"labelmaps\.json"):
        LabelMaps(tmp_path, None, 3)
