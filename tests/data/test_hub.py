"""Hugging Face data sets in every local form, and what is said when they cannot be had."""

import builtins
import io
import pickle

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor

from freqformer.data import Samples, UnreadableImage, collate, open_images, sweep_splits
from freqformer.errors import FreqFormerError, MissingExtra

datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")
LABELS = {"train": [2, 0, 1, 1, 2, 0], "validation": [1, 0, 2]}
NAMES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("hub")))


def encoded(red, side=12):
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def table(labels, **columns):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    rows = {"image": [{"bytes": encoded(40 * label), "path": None} for label in labels], "label": labels}
    for name, feature in columns.items():
        features[name] = feature
        rows[name] = rows["image"] if isinstance(feature, datasets.Image) else [0] * len(labels)
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def tables(**splits):
    return datasets.DatasetDict({split: table(labels) for split, labels in (splits or LABELS).items()})


def saved(folder):
    tables().save_to_disk(str(folder))


def parquet(folder):
    folder.mkdir()
    for split, part in tables().items():
        part.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


def image_folder(folder):
    for split, labels in LABELS.items():
        for i, label in enumerate(labels):
            path = folder / split / NAMES[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(40 * label))


@pytest.mark.parametrize("write", [saved, parquet, image_folder])
@pytest.mark.parametrize("by_path", [False, True])
def test_local_folders(tmp_path, write, by_path):
    folder = tmp_path / "my data"
    write(folder)
    name, path = ("hf:", folder) if by_path else (f"hf:{folder}", None)
    for split, labels in zip(("train", "val"), LABELS.values(), strict=True):
        images = pickle.loads(pickle.dumps(open_images(name, path, split)))
        assert images.classes == NAMES
        assert sorted(images.targets.tolist()) == sorted(labels)
        assert [images.load(i).getpixel((3, 3))[0] for i in range(len(images))] == (40 * images.targets).tolist()
        assert len({images.name(i) for i in range(len(images))}) == len(images)
        assert images.root == str(folder)


def to_tensor(image):
    return pil_to_tensor(image).float()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_and_bad_images(tmp_path, workers):
    rows = [encoded(40), b"no image", None, encoded(80), encoded(80)[:40]]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    cells = [content and {"bytes": content, "path": None} for content in rows]
    part = datasets.Dataset.from_dict({"image": cells, "label": [1, 0, 0, 2, 0]}, features=features)
    datasets.DatasetDict(test=part).save_to_disk(str(tmp_path / "set"))
    samples = Samples(open_images("hf:", tmp_path / "set", "val", limit=5), to_tensor)
    (batch,) = DataLoader(samples, 5, collate_fn=collate, num_workers=workers)
    assert sorted(batch["target"].tolist()) == [1, 2]
    assert torch.equal(batch["image"][:, 0, 0, 0], batch["target"] * 40.0)
    assert {name for name, _ in batch["bad"]} == {f"set/test/{row:06d}" for row in (1, 2, 4)}


def test_columns_are_found_by_their_type(tmp_path):
    def opened(part):
        datasets.DatasetDict(train=part).save_to_disk(str(tmp_path / "set"))
        return open_images("hf:", tmp_path / "set", "train")

    assert len(opened(table([0, 1]).rename_columns({"image": "photo", "label": "kind"}))) == 2
    coarse = datasets.ClassLabel(names=["x"])
    both = table([0, 1], coarse_label=coarse).rename_columns({"label": "fine_label", "image": "img"})
    assert opened(both).classes == NAMES
    assert opened(table([0, 1], mask=datasets.Image())).load(1).getpixel((0, 0)) == (40, 0, 0)
    with pytest.raises(FreqFormerError, match=r"no column of the type Image among label \(ClassLabel\); one is"):
        opened(table([0, 1]).remove_columns("image"))
    with pytest.raises(FreqFormerError, match=r"no column of the type ClassLabel among image \(Image\), n \(Value\)"):
        opened(table([0, 1], n=datasets.Value("int64")).remove_columns("label"))
    with pytest.raises(FreqFormerError, match=r"2 columns of the type ClassLabel among .*a \(ClassLabel\)"):
        opened(table([0, 1], a=coarse).rename_column("label", "b"))


def test_splits(tmp_path):
    tables(train=[0], test=[1, 2]).save_to_disk(str(tmp_path / "a"))
    assert open_images("hf:", tmp_path / "a", "val").targets.tolist() == [1, 2]
    tables(train=[0], other=[1]).save_to_disk(str(tmp_path / "b"))
    with pytest.raises(FreqFormerError, match="no split validation or val or valid or test, but train, other"):
        open_images("hf:", tmp_path / "b", "val")
    tables(train=[0], test=[-1, 2]).save_to_disk(str(tmp_path / "c"))
    with pytest.raises(FreqFormerError, match="some of the 2 images of the split test have no label"):
        open_images("hf:", tmp_path / "c", "val")


def test_the_classes_of_a_checkpoint(tmp_path):
    saved(tmp_path / "set")
    images = open_images("hf:", tmp_path / "set", "val", classes=["cat", "bee", "ant"])
    assert images.targets.tolist() == [1, 2, 0]


def test_a_damaged_or_empty_folder(tmp_path):
    saved(tmp_path / "set")
    for arrow in (tmp_path / "set/train").glob("*.arrow"):
        arrow.write_bytes(arrow.read_bytes()[:100])
    (tmp_path / "empty").mkdir()
    for name in ("set", "empty"):
        with pytest.raises(FreqFormerError, match=f"cannot load the data set in {tmp_path / name}: ") as caught:
            open_images("hf:", tmp_path / name, "train")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hf:someone/something", "hf:someone/something@plain"])
def test_the_hub_out_of_reach(name, monkeypatch):
    def load(source, configuration):
        assert (source, configuration) == ("someone/something", "plain" if "@" in name else None)
        raise ConnectionError("Couldn't reach it\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(FreqFormerError, match=r"^cannot load hf:.* hub: Couldn't reach it \(check the name") as caught:
        open_images(name, None, "train")
    assert "\n" not in str(caught.value)


def test_hf_alone_needs_a_folder():
    with pytest.raises(FreqFormerError, match="give --data-path"):
        open_images("hf:", None, "train")
    with pytest.raises(FreqFormerError, match="unknown data set 'hf'"):
        open_images("hf", None, "train")


def test_without_the_library(monkeypatch):
    real = builtins.__import__

    def absent(name, *args):
        if name == "datasets":
            raise ModuleNotFoundError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtra, match=r"freqformer\[hub\]"):
        open_images("hf:any", None, "train")


def test_an_arrow_file_that_vanishes_is_a_bad_image(tmp_path):
    saved(tmp_path / "set")
    images = open_images("hf:", tmp_path / "set", "train")
    images.read.args[0]._data = None  # As a table is whose file cannot be mapped any more.
    with pytest.raises(UnreadableImage, match="cannot read image set/train/000001"):
        images.load(1)


def opened(folder, split):
    return open_images(f"hf:{folder}", None, split).targets.tolist()


def test_splits_by_their_own_names(tmp_path):
    tables(train800=[0, 1], val200=[2], test=[1, 1]).save_to_disk(str(tmp_path / "vtab"))
    splits = ("train800", "val200", "train800val200", "train", "val", "test")
    found = {split: opened(tmp_path / "vtab", split) for split in splits}
    assert (found["train800"], found["val200"], found["test"], found["val"]) == ([0, 1], [2], [1, 1], [1, 1])
    assert found["train"] == found["train800val200"] == [0, 1, 2]
    with pytest.raises(FreqFormerError, match="no split odd, but train800, val200, test"):
        opened(tmp_path / "vtab", "odd")
    assert sweep_splits(f"hf:{tmp_path / 'vtab'}") == ("train800", "val200", "train800val200", "test")

    tables(train=[0, 1, 2, 0, 1], validation=[2], test=[1]).save_to_disk(str(tmp_path / "three"))
    assert opened(tmp_path / "three", "trainval") == [0, 1, 2, 0, 1, 2]
    assert opened(tmp_path / "three", "validation") == opened(tmp_path / "three", "val") == [2]
    assert sorted(opened(tmp_path / "three", "train80") + opened(tmp_path / "three", "train20")) == [0, 0, 1, 1, 2]
    assert sweep_splits("hf:", tmp_path / "three") == ("train", "val", "trainval", "test")


def test_a_test_split_is_never_trained_or_tuned_on(tmp_path):
    tables(train=[0, 1], test=[1]).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(FreqFormerError, match="no split trainval, but train, test"):
        opened(tmp_path / "two", "trainval")
    assert sweep_splits(f"hf:{tmp_path / 'two'}") == ("train80", "train20", "train", "val")
