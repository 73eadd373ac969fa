import builtins
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from freqformer.data import DATA_SETS, open_images
from freqformer.data.datasets import balanced_order
from freqformer.errors import FreqFormerError, MissingExtra


def put(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), (colour, colour, colour)).save(path)


@pytest.fixture
def tree(tmp_path):
    for split in ("train", "val"):
        for c in ("cat", "ant", "bee"):
            put(tmp_path / split / c / "1.png", 10)
            put(tmp_path / split / c / "0.png", 20)
    return tmp_path


def test_folders_are_read_in_sorted_order(tree):
    for name in ("FOLDER", "IMNET"):
        images = pickle.loads(pickle.dumps(open_images(name, str(tree), "train")))
        assert images.classes == ["ant", "bee", "cat"]
        assert images.targets.tolist() == [0, 0, 1, 1, 2, 2]
        assert images.name(1) == str(tree / "train/ant/1.png")
        assert images.load(1).getpixel((0, 0)) == (10, 10, 10)
        assert len(list(images.rows)) == len(images) == 6


def test_folders_take_odd_names(tmp_path):
    names = [
        "a.JPG",
        "b.jpeg",
        "ü ñ 日本.png",
        "deep/er/d.BMP",
        "e.gif",
        "f.Tiff",
        "g.webp",
        "h.ppm",
        "w\udcff.pgm",
        "line\nbreak.png",
        "-rf.png",
        " .png",
    ]
    for name in names:
        put(tmp_path / "val/one class" / name)
    put(tmp_path / "elsewhere/x.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "val/linked")
    os.symlink(tmp_path / "elsewhere/x.png", tmp_path / "val/one class/y.png")
    os.symlink("itself", tmp_path / "val/one class/itself")
    (tmp_path / "val/one class/notes.txt").write_text("no image")
    (tmp_path / "val/one class/._a.jpg").write_bytes(b"left by a Mac")
    (tmp_path / "val/.hidden").mkdir()
    (tmp_path / "val/LICENCE").touch()
    images = open_images("FOLDER", tmp_path, "val")
    assert images.classes == ["linked", "one class"]
    assert len(images) == len(names) + 2
    assert {images.load(i).size for i in range(len(images))} == {(3, 2)}


def test_folders_end_at_links_that_loop(tmp_path):
    put(tmp_path / "val/a/b/x.png")
    os.symlink(tmp_path / "val/a", tmp_path / "val/a/b/loop")
    assert len(open_images("FOLDER", tmp_path, "val")) == 1


def test_val_takes_its_numbers_from_train(tree):
    for file in (tree / "val/bee").iterdir():
        file.unlink()
    (tree / "val/bee").rmdir()
    images = open_images("FOLDER", tree, "val")
    assert (images.classes, images.targets.tolist()) == (["ant", "bee", "cat"], [0, 0, 2, 2])
    put(tree / "val/cow/1.png")
    with pytest.raises(FreqFormerError, match="cow is not in"):
        open_images("FOLDER", tree, "val")


def test_classes_of_a_checkpoint(tree):
    by_name = open_images("FOLDER", tree, "train", classes=["cow", "cat", "bee", "ant"])
    assert by_name.classes == ["cow", "cat", "bee", "ant"]
    assert by_name.targets.tolist() == [3, 3, 2, 2, 1, 1]
    in_order = open_images("FOLDER", tree, "train", classes=["Ant", "Bee", "Cat"])
    assert (in_order.classes, in_order.targets.tolist()) == (["Ant", "Bee", "Cat"], [0, 0, 1, 1, 2, 2])
    with pytest.raises(FreqFormerError, match="class-count mismatch: the data has 3 classes and the model 2"):
        open_images("FOLDER", tree, "train", classes=["ant", "bee"])
    with pytest.raises(FreqFormerError, match="the data has 10 classes and the model 12"):
        open_images("DIGITS", None, "val", classes=[str(i) for i in range(12)])


def test_folder_errors(tree, tmp_path_factory):
    bare = tmp_path_factory.mktemp("bare")
    with pytest.raises(FreqFormerError, match=r"no folder 'val' \(it holds nothing\)"):
        open_images("FOLDER", bare, "val")
    (bare / "images").mkdir()
    with pytest.raises(FreqFormerError, match=r"no folder 'train' \(it holds images\)"):
        open_images("FOLDER", bare, "train")
    (bare / "train").mkdir()
    with pytest.raises(FreqFormerError, match="has no class folders"):
        open_images("FOLDER", bare, "train")
    (tree / "train/dog").mkdir()
    with pytest.raises(FreqFormerError, match="train/dog has no images"):
        open_images("FOLDER", tree, "train")


def test_a_damaged_image_is_named(tree):
    (tree / "val/ant/0.png").write_bytes(b"junk")
    images = open_images("FOLDER", tree, "val")
    with pytest.raises(FreqFormerError, match=r"cannot read image .*val/ant/0.png: not an image"):
        images.load(0)


def test_paths(tmp_path):
    with pytest.raises(FreqFormerError, match="give --data-path"):
        open_images("MNIST", None, "train")
    with pytest.raises(FreqFormerError, match="none does not exist; check --data-path"):
        open_images("FOLDER", tmp_path / "none", "train")
    (tmp_path / "file").touch()
    with pytest.raises(FreqFormerError, match="is not a folder"):
        open_images("FOLDER", tmp_path / "file", "train")


def test_names_and_splits():
    with pytest.raises(FreqFormerError, match="'cifar-10': did you mean CIFAR10") as caught:
        open_images("cifar-10", None, "train")
    assert all(name in str(caught.value) for name in DATA_SETS)
    with pytest.raises(FreqFormerError, match="unknown data set 'zzz': choose"):
        open_images("zzz", None, "train")
    with pytest.raises(FreqFormerError, match="unknown split 'test'"):
        open_images("DIGITS", None, "test")


def test_digits():
    train, val = (open_images("DIGITS", None, split) for split in ("train", "val"))
    assert len(train) + len(val) == 1797
    assert not set(train.rows) & set(val.rows)
    for digit in range(10):
        held_out, rest = (val.targets == digit).sum(), (train.targets == digit).sum()
        assert 0.18 < held_out / (held_out + rest) < 0.22
    image = val.load(3)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert max(high for i in range(20) for _, high in val.load(i).getextrema()) == 255
    assert val.name(0) == f"digits/{val.rows[0]:06d}"


def test_digits_without_scikit_learn(monkeypatch):
    real = builtins.__import__

    def absent(name, *args):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtra, match=r"freqformer\[train\]"):
        open_images("DIGITS", None, "val")


def test_limit():
    whole = open_images("DIGITS", None, "train")
    thirty, forty = (open_images("DIGITS", None, "train", limit=n) for n in (30, 40))
    assert np.bincount(thirty.targets).tolist() == [3] * 10
    assert thirty.rows.tolist() == forty.rows[:30].tolist()
    assert thirty.rows.tolist() != sorted(thirty.rows)
    assert all(thirty.load(i).size == (8, 8) for i in range(30))
    assert open_images("DIGITS", None, "train", limit=9999).rows.tolist() == whole.rows.tolist()
    with pytest.raises(FreqFormerError, match="at least 1, not 0"):
        open_images("DIGITS", None, "train", limit=0)


def test_balanced_order_is_fixed_and_runs_out_by_class():
    targets = np.array([0] * 5 + [2] * 2)
    order = balanced_order(targets)
    assert sorted(order) == list(range(7))
    assert sorted(targets[order[:4]]) == [0, 0, 2, 2]
    assert order.tolist() == balanced_order(targets).tolist()
