"""VTAB-1k in miniature, and the splits of every data set."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from freqformer.data import VTAB_GROUPS, VTAB_TASKS, Images, datasets, open_images, sweep_splits
from freqformer.errors import FreqFormerError

# Of FreqFit's run.sh.
CLASSES = {
    **{"cifar100": 100, "caltech101": 102, "dtd": 47, "flowers": 102, "pets": 37, "svhn": 10, "sun397": 397},
    **{"camelyon": 2, "eurosat": 10, "resisc45": 45, "retino": 5, "clevr-count": 8, "clevr-distance": 6, "dmlab": 6},
    **{"kitti": 4, "dsprites-location": 16, "dsprites-orientation": 16},
    **{"smallnorb-azimuth": 18, "smallnorb-elevation": 9},
}


def read(name, path, split, **more):
    """Name and target of every image of a split."""
    images = open_images(name, path, split, **more)
    return [(images.name(i), int(target)) for i, target in enumerate(images.targets)]


def test_the_table():
    assert {name: task.classes for name, task in VTAB_TASKS.items()} == CLASSES
    assert {group: len(names) for group, names in VTAB_GROUPS.items()} == {
        "Natural": 7,
        "Specialised": 4,
        "Structured": 8,
    }
    assert [name for names in VTAB_GROUPS.values() for name in names] == list(VTAB_TASKS)
    assert len({task.folder for task in VTAB_TASKS.values()}) == 19


def test_every_task_opens(make_vtab, tmp_path):
    root = make_vtab(tmp_path / "vtab-1k", VTAB_TASKS, size=(8, 8), count=8)
    for name, task in VTAB_TASKS.items():
        train, test = (open_images(f"vtab:{name}", root, split) for split in ("train", "val"))
        assert train.classes == test.classes == [str(number) for number in range(task.classes)]
        assert (len(train), len(test)) == (10, 4)
        image = train.load(9)
        assert (image.mode, image.size) == ("RGB", (8, 8))
        assert train.name(9) == str(root / task.folder / "images/train800val200/000009.jpg")


@pytest.mark.parametrize("both", [True, False])
def test_splits(make_vtab, tmp_path, both):
    root = make_vtab(tmp_path, ["svhn"], both=both)
    splits = {split: read("svhn", root, split) for split in ("train800", "val200", "train800val200", "test")}
    assert [len(rows) for rows in splits.values()] == [16, 4, 20, 8]
    assert splits["train800val200"] == splits["train800"] + splits["val200"] == read("svhn", root, "train")
    assert splits["test"] == read("svhn", root, "val") == read("svhn", root, "validation")
    assert [target for _, target in splits["train800"][:4]] == [0, 1, 2, 0]


def test_where_a_task_may_lie(make_vtab, tmp_path):
    root = make_vtab(tmp_path / "data/vtab-1k", ["cifar100", "svhn"])
    rows = read("cifar100", root, "test")
    assert rows == read("cifar100", tmp_path / "data", "test") == read("cifar100", root / "cifar", "test")
    (root / "cifar").rename(tmp_path / "anywhere")
    assert len(read("cifar100", tmp_path / "anywhere", "test")) == len(rows)
    with pytest.raises(FreqFormerError, match=r"cifar100: none of .*cifar, .* has train800.txt, .*; check --data-path"):
        open_images("cifar100", root, "test")
    # The folder of another task is not this one.
    with pytest.raises(FreqFormerError, match="none of"):
        open_images("cifar100", root / "svhn", "test")


def test_names_are_case_sensitive(make_vtab, tmp_path):
    root = make_vtab(tmp_path, ["cifar100"])
    with pytest.raises(FreqFormerError, match="neither cifar-100-python"):
        open_images("CIFAR100", root, "train")
    with pytest.raises(FreqFormerError, match="unknown data set 'Cifar100': did you mean CIFAR100 or cifar100"):
        open_images("Cifar100", root, "train")
    with pytest.raises(FreqFormerError, match=r"unknown data set 'vtab:CIFAR100': did you mean cifar100\?"):
        open_images("vtab:CIFAR100", root, "train")
    with pytest.raises(FreqFormerError, match="did you mean clevr-count"):
        open_images("clevr_count", root, "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/test/000000.jpg", "line 9 of .*test.txt must be a path and a class's number, not 'images/test"),
        ("3", "must be a path and a class's number, not '3'"),
        ("images/test/000000.jpg -1", "must be a path and a class's number"),
        ("images/test/000000.jpg one", "must be a path and a class's number"),
        ("images/test/000000.jpg 10", r"line 9 of .*test.txt has the class 10, but there are 10 \(0 to 9\)"),
    ],
)
def test_a_wrong_line_is_named(make_vtab, tmp_path, line, message):
    root = make_vtab(tmp_path, ["svhn"])
    with (root / "svhn/test.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(FreqFormerError, match=message) as caught:
        open_images("svhn", root, "test")
    assert "\n" not in str(caught.value)


def test_odd_paths_are_paths(make_vtab, tmp_path):
    root = make_vtab(tmp_path, ["svhn"])
    Image.new("RGB", (3, 3)).save(root / "svhn/images/a b\u2028c.png")
    with (root / "svhn/test.txt").open("a", encoding="utf-8", newline="") as file:
        file.write("\r\n images/a b\u2028c.png\t7\r\n\n")
    images = open_images("svhn", root, "test")
    assert images.targets[-1] == 7
    assert images.load(len(images) - 1).size == (3, 3)


def test_lost_files_are_told(make_vtab, tmp_path):
    root = make_vtab(tmp_path, ["svhn"], both=False)
    (root / "svhn/val200.txt").unlink()
    with pytest.raises(FreqFormerError, match=r"there is no .*val200.txt; unpack"):
        open_images("svhn", root, "train")
    for path in (root / "svhn/images/test").iterdir():
        path.unlink()
    with pytest.raises(FreqFormerError, match="none of the listed images is there"):
        open_images("svhn", root, "test")
    (root / "svhn/test.txt").write_text("\n")
    with pytest.raises(FreqFormerError, match="lists no images"):
        open_images("svhn", root, "test")


def test_an_unknown_split_lists_those_of_the_data_set(make_vtab, tmp_path):
    root = make_vtab(tmp_path, ["svhn"])
    splits = "train, val, train800, val200, train800val200, test, train80, train20"
    with pytest.raises(FreqFormerError, match=f"unknown split 'trainval': svhn has {splits}$"):
        open_images("svhn", root, "trainval")
    with pytest.raises(FreqFormerError, match=r"'train800': DIGITS has train, val, train80, train20$"):
        open_images("DIGITS", None, "train800")
    with pytest.raises(FreqFormerError, match=r"'x': FGVC has train, val, trainval, test, train80, train20$"):
        open_images("FGVC", root, "x")


@given(st.lists(st.integers(0, 6), min_size=5, max_size=80), st.randoms(use_true_random=False))
def test_a_training_split_is_divided_with_its_classes_in_balance(targets, random):
    random.shuffle(targets)
    targets = np.array(targets, dtype=np.int64)
    rows = np.arange(len(targets)) + 100
    images = Images(["a"] * 7, targets, rows, read=str, identify=str)
    most, least = (datasets._part("x", images, part) for part in ("train80", "train20"))
    assert sorted([*most.rows, *least.rows]) == rows.tolist()
    assert len(least) == len(targets) // 5
    for part in (most, least):
        assert part.targets.tolist() == targets[part.rows - 100].tolist()
        assert part.rows.tolist() == sorted(part.rows)
    held_out, all_of_it = (np.bincount(each.targets, minlength=7) for each in (least, images))
    assert (held_out >= all_of_it // 5).all()
    assert (held_out <= -(-all_of_it // 5)).all()


def test_the_division_is_fixed_and_of_the_training_split(make_vtab, tmp_path):
    train = read("DIGITS", None, "train")
    most, least = read("DIGITS", None, "train80"), read("DIGITS", None, "train20")
    assert (len(train), len(most), len(least)) == (1442, 1154, 288)
    assert sorted(most + least) == train
    assert least == read("DIGITS", None, "train20")
    assert least[:3] == [("digits/000003", 3), ("digits/000015", 5), ("digits/000020", 0)]
    assert len(read("DIGITS", None, "train80", limit=30)) == 30
    root = make_vtab(tmp_path, ["svhn"])
    assert sorted(read("svhn", root, "train80") + read("svhn", root, "train20")) == sorted(read("svhn", root, "train"))
    with pytest.raises(FreqFormerError, match="3 training images are too few to divide"):
        open_images("svhn", make_vtab(tmp_path / "few", ["svhn"], count=3), "train20")


@pytest.fixture
def fgvc(tmp_path):
    rows = {"train": {"a.png": 7, "b.png": 3, "c.png": 7}, "val": {"d.png": 3}, "test": {"e.png": 7, "f.png": 3}}
    for split, content in rows.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        for name in content:
            Image.new("RGB", (3, 3)).save(tmp_path / name)
    return tmp_path


def test_fgvc_splits(fgvc):
    found = {
        split: [(name.rpartition("/")[2], target) for name, target in read("FGVC", fgvc, split)]
        for split in ("train", "val", "trainval", "test")
    }
    assert found == {
        "train": [("a.png", 1), ("b.png", 0), ("c.png", 1)],
        "val": [("d.png", 0)],
        "trainval": [("a.png", 1), ("b.png", 0), ("c.png", 1), ("d.png", 0)],
        "test": [("e.png", 1), ("f.png", 0)],
    }
    (fgvc / "val.json").write_text('{"d.png": 5}')
    with pytest.raises(FreqFormerError, match=r"val.json has the class 5, which .*train.json has not"):
        open_images("FGVC", fgvc, "trainval")
    (fgvc / "val.json").unlink()
    assert read("FGVC", fgvc, "val") == read("FGVC", fgvc, "test")
    with pytest.raises(FreqFormerError, match=r"there is no .*val.json"):
        open_images("FGVC", fgvc, "trainval")


def test_splits_of_a_sweep(fgvc):
    divided = ("train80", "train20", "train", "val")
    for name in ("cifar100", "vtab:clevr-count"):
        assert sweep_splits(name) == ("train800", "val200", "train800val200", "test")
    assert sweep_splits("FGVC") == sweep_splits("FGVC", fgvc) == ("train", "val", "trainval", "test")
    (fgvc / "val.json").unlink()
    # Its test split must not be tuned on.
    assert sweep_splits("FGVC", fgvc) == divided
    for name in ("CIFAR100", "FOLDER", "DIGITS"):
        assert sweep_splits(name) == divided
    assert sweep_splits("cifar100").final_val == "test"
    with pytest.raises(FreqFormerError, match="unknown data set"):
        sweep_splits("zzz")
