import gzip
import io
import os
import pickle
import tarfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from freqformer.data import UnreadableImage, open_images
from freqformer.errors import FreqFormerError

SHARED = Path(__file__).parents[3] / "shared/data"
RANDOM = np.random.RandomState(0)
DIGITS = RANDOM.randint(0, 256, (6, 5, 4), np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FREQFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def put_mnist(folder, pack=True, images=None, labels=None, stem="train"):
    folder.mkdir(parents=True, exist_ok=True)
    images = idx(DIGITS) if images is None else images
    labels = idx(np.array([3, 1, 4, 1, 5, 9])) if labels is None else labels
    for content, file in ((images, f"{stem}-images-idx3-ubyte"), (labels, f"{stem}-labels-idx1-ubyte")):
        if pack:
            (folder / f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / file).write_bytes(content)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize(
    ("name", "below"),
    [("MNIST", ""), ("MNIST", "MNIST/raw"), ("FASHION_MNIST", ""), ("FASHION_MNIST", "FashionMNIST/raw")],
)
def test_idx(tmp_path, name, below, pack):
    put_mnist(tmp_path / below, pack)
    put_mnist(tmp_path / below, pack, stem="t10k")
    for split in ("train", "val"):
        images = pickle.loads(pickle.dumps(open_images(name, tmp_path, split)))
        assert images.targets.tolist() == [3, 1, 4, 1, 5, 9]
        assert images.targets.dtype == np.int64
        np.testing.assert_array_equal(np.asarray(images.load(2)), np.repeat(DIGITS[2][..., None], 3, -1))
        assert images.classes[9] == ("9" if name == "MNIST" else "Ankle boot")
        assert images.name(2) == f"{name.lower()}/{'train' if split == 'train' else 'test'}/000002"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"images": b"\0\0\x0d\x03" + idx(DIGITS)[4:]}, "is not an IDX file"),
        ({"images": idx(DIGITS[0])}, "is not an IDX file of bytes in 3 dimensions"),
        ({"images": b""}, "is not an IDX file"),
        ({"images": idx(DIGITS)[:-1]}, "holds 135 bytes where its header announces 136 for 6x5x4"),
        ({"images": idx(DIGITS)[:9]}, "holds 9 bytes"),
        ({"labels": idx(np.arange(5))}, "has 6 images but train-labels.* has 5 labels"),
        ({"labels": idx(np.arange(6) + 5)}, "has the label 10"),
    ],
)
@pytest.mark.parametrize("pack", [True, False])
def test_idx_errors(tmp_path, files, message, pack):
    put_mnist(tmp_path, pack, **files)
    with pytest.raises(FreqFormerError, match=message):
        open_images("MNIST", tmp_path, "train")


def test_idx_damaged_or_missing(tmp_path):
    with pytest.raises(FreqFormerError, match=r"no train-images-idx3-ubyte\[.gz\] in"):
        open_images("MNIST", tmp_path, "train")
    put_mnist(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for damaged in (whole[:-20], b"junk", whole[:30] + b"junk" + whole[34:]):
        file.write_bytes(damaged)
        with pytest.raises(FreqFormerError, match=f"cannot read {file}"):
            open_images("MNIST", tmp_path, "train")


def cifar_files(count=10, n=4, python2=True):
    fine = "fine_labels" if count == 100 else "labels"
    batches = ["train", "test"] if count == 100 else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    key = (lambda name: name.encode()) if python2 else str
    files = {}
    for number, batch in enumerate(batches):
        data = np.full((n, 3, 32, 32), number, np.uint8)
        data[:, 0] += 100  # red
        data[:, :, :, 31] = 7  # the right edge
        content = {key("data"): data.reshape(n, -1), key(fine): [i % count for i in range(n)]}
        content |= {key("coarse_labels"): [0] * n, key("filenames"): [key("x.png")] * n}
        files[batch] = pickle.dumps(content, 2)
    names = [key(f"class {i}") for i in range(count)]
    meta = {key("fine_label_names" if count == 100 else "label_names"): names}
    return files | {"meta" if count == 100 else "batches.meta": pickle.dumps(meta, 2)}


def put_cifar(root, files, name="CIFAR10", pack=False):
    folder = "cifar-10-batches-py" if name == "CIFAR10" else "cifar-100-python"
    if pack:
        archive = "cifar-10-python.tar.gz" if name == "CIFAR10" else "cifar-100-python.tar.gz"
        with tarfile.open(root / archive, "w:gz") as tar:
            for file, content in files.items():
                add(tar, f"{folder}/{file}", content)
    else:
        (root / folder).mkdir()
        for file, content in files.items():
            (root / folder / file).write_bytes(content)


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("python2", [True, False])
@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_archives(tmp_path, name, python2, pack):
    count = int(name[5:])
    put_cifar(tmp_path, cifar_files(count, python2=python2), name, pack)
    train, val = (pickle.loads(pickle.dumps(open_images(name, tmp_path, s))) for s in ("train", "val"))
    assert train.classes == val.classes == [f"class {i}" for i in range(count)]
    assert len(train) == (20 if count == 10 else 4)
    assert val.targets.tolist() == [0, 1, 2, 3]
    last = 5 if count == 10 else 1
    assert val.load(1).getpixel((0, 9)) == (100 + last, last, last)
    assert val.load(1).getpixel((31, 9)) == (7, 7, 7)
    assert train.load(0).getpixel((0, 0)) == (100, 0, 0)
    assert val.name(3) == f"{name.lower()}/test/000003"


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


class Codec:
    def __reduce__(self):
        import _codecs

        return _codecs.encode, ("text", "zip")


def test_a_malicious_pickle_does_not_run(tmp_path):
    marker = tmp_path / "it ran"
    put_cifar(tmp_path, cifar_files() | {"test_batch": pickle.dumps(Malicious(marker), 2)})
    with pytest.raises(FreqFormerError, match=r"refused .*test_batch: it asks for posix.mkdir") as caught:
        open_images("CIFAR10", tmp_path, "val")
    assert "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"junk", "refused to read"),
        (b"", "refused to read"),
        (cifar_files()["test_batch"][:-40], "refused to read"),
        (pickle.dumps({"data": Codec()}, 2), "encoded as zip"),
        (pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}, 2), "not a CIFAR batch"),
        (
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}, 2),
            "not a CIFAR batch",
        ),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, 2), "not a CIFAR batch"),
        (pickle.dumps({}, 2), "not a CIFAR batch"),
        (pickle.dumps([1], 2), "is not a CIFAR file"),
    ],
)
def test_damaged_cifar(tmp_path, content, message):
    put_cifar(tmp_path, cifar_files() | {"test_batch": content})
    with pytest.raises(FreqFormerError, match=message):
        open_images("CIFAR10", tmp_path, "val")


def test_incomplete_cifar(tmp_path):
    with pytest.raises(FreqFormerError, match=r"has neither cifar-10-batches-py, cifar-10-python.tar.gz nor"):
        open_images("CIFAR10", tmp_path, "val")
    files = cifar_files()
    del files["data_batch_3"]
    put_cifar(tmp_path, files, pack=True)
    with pytest.raises(FreqFormerError, match=r"cifar-10-python.tar.gz lacks data_batch_3"):
        open_images("CIFAR10", tmp_path, "train")
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(FreqFormerError, match=f"cannot read {archive}"):
        open_images("CIFAR10", tmp_path, "train")
    files["batches.meta"] = pickle.dumps({b"label_names": [b"one"]}, 2)
    put_cifar(tmp_path, files)
    with pytest.raises(FreqFormerError, match="cifar-10-batches-py lacks data_batch_3"):
        open_images("CIFAR10", tmp_path, "train")
    with pytest.raises(FreqFormerError, match="does not name 10 classes"):
        open_images("CIFAR10", tmp_path, "val")


def image_bytes(value):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def put_shard(path, labels, first=0, extra=()):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for i, label in enumerate(labels, first):
            add(tar, f"{i:06d}.png", image_bytes(i))
            add(tar, f"{i:06d}.cls", str(label).encode())
        for name, content in extra:
            add(tar, name, content)


def test_shards(tmp_path, cache):
    put_shard(tmp_path / "x-train-001.tar", [5, 6], first=2)
    put_shard(tmp_path / "x-train-000.tar.gz", [9, 0])
    put_shard(tmp_path / "x-train-000.tar", [9, 0])  # As `gunzip -k` leaves them, side by side.
    put_shard(tmp_path / "x-test-000.tar.gz", [7])
    images = pickle.loads(pickle.dumps(open_images("CIFAR10", tmp_path, "train")))
    assert images.targets.tolist() == [9, 0, 5, 6]
    assert [images.load(i).getpixel((0, 0))[0] for i in range(4)] == [0, 1, 2, 3]
    assert [images.name(i) for i in (0, 3)] == ["cifar10/train/000000", "cifar10/train/000003"]
    assert images.classes[9] == "truck"
    assert len(open_images("CIFAR10", tmp_path, "val")) == 1
    assert sorted(file.suffix for file in cache.iterdir()) == [".npz"] * 3 + [".tar"]
    (tmp_path / "classes.txt").write_text("\n".join("abcdefghij"))
    assert open_images("CIFAR10", tmp_path, "train").classes == list("abcdefghij")


def test_class_names_that_repeat_are_told_apart_by_number(tmp_path, cache):
    put_shard(tmp_path / "train-0.tar", [0, 1, 2])
    put_shard(tmp_path / "val-0.tar", [0, 2, 1])
    (tmp_path / "classes.txt").write_text("crane\nant\ncrane")
    train = open_images("WDS", tmp_path, "train")
    assert open_images("WDS", tmp_path, "val", classes=train.classes).targets.tolist() == [0, 2, 1]


def test_the_cache_is_used_and_follows_the_shard(tmp_path, cache):
    shard = tmp_path / "test.tar.gz"
    put_shard(shard, [1, 2])
    open_images("CIFAR10", tmp_path, "val")
    times = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    open_images("CIFAR10", tmp_path, "val")
    assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == times
    put_shard(shard, [3, 4, 5])
    assert open_images("CIFAR10", tmp_path, "val").targets.tolist() == [3, 4, 5]


def test_shards_never_leave_the_cache(tmp_path):
    put_shard(tmp_path / "test.tar", [1], extra=[("../../escape.png", image_bytes(9)), ("../../escape.cls", b"2")])
    images = open_images("CIFAR10", tmp_path, "val")
    assert images.load(1).getpixel((0, 0)) == (9, 0, 0)
    assert not list(tmp_path.parent.rglob("escape*"))


def put_escapes(tar, outside):
    """Members that mean other places, each of a name that would be read if it were a file."""
    kinds = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE, "device": tarfile.CHRTYPE}
    for key, kind in kinds.items():
        for suffix in ("png", "cls"):
            info = tarfile.TarInfo(f"{key}.{suffix}")
            info.type, info.linkname = kind, f"{outside}.{suffix}"
            tar.addfile(info)


def test_nothing_that_a_shard_names_is_followed_or_written(tmp_path):
    (tmp_path / "secret.png").write_bytes(image_bytes(99))
    (tmp_path / "secret.cls").write_text("3")
    folder = tmp_path / "shards"
    folder.mkdir()
    with tarfile.open(folder / "val.tar", "w") as tar:
        for number, key in enumerate(["../up", "/absolute/path", "./plain", "w\udcff", "line\nbreak"]):
            add(tar, f"{key}.png", image_bytes(number))
            add(tar, f"{key}.cls", str(number).encode())
        put_escapes(tar, tmp_path / "secret")
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    images = open_images("WDS", folder, "val")
    assert [images.load(i).getpixel((0, 0))[0] for i in range(len(images))] == [0, 1, 2, 3, 4]
    assert images.name(3) == "val/w\udcff"
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_the_cifar_archive_are_not_followed(tmp_path, kind):
    files = cifar_files()
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data/cifar-10-python.tar.gz", "w:gz") as tar:
        for file, content in files.items():
            if file != "test_batch":
                add(tar, f"cifar-10-batches-py/{file}", content)
        add(tar, "elsewhere", files["test_batch"])
        add(tar, "../cifar-10-batches-py/test_batch", files["test_batch"])
        info = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        info.type, info.linkname = kind, "elsewhere"
        tar.addfile(info)
    with pytest.raises(FreqFormerError, match="lacks test_batch"):
        open_images("CIFAR10", tmp_path / "data", "val")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-python.tar.gz"]
    assert not list(tmp_path.rglob("test_batch"))


def test_a_shard_that_vanishes_is_a_bad_image(tmp_path):
    put_shard(tmp_path / "test.tar", [1])
    images = open_images("CIFAR10", tmp_path, "val")
    (tmp_path / "test.tar").unlink()
    with pytest.raises(UnreadableImage, match=r"cifar10/test/000000: .*No such file"):
        images.load(0)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_damaged_shards(tmp_path, cache, suffix):
    shard = tmp_path / f"test{suffix}"
    put_shard(shard, [1, 2, 3])
    whole = shard.read_bytes()
    cuts = [len(whole) // 2, 0] if suffix == ".tar.gz" else [512, 1024, 1300, 2048, 0]
    for damaged in (*(whole[:cut] for cut in cuts), b"junk" * 1000):
        shard.write_bytes(damaged)
        with pytest.raises(FreqFormerError, match=f"the shard {shard} is damaged|{shard} has no pair"):
            open_images("CIFAR10", tmp_path, "val")
    assert not [file for file in cache.iterdir() if file.suffix == ".npz"]


@pytest.mark.parametrize(
    ("labels", "extra", "message"),
    [
        ([1], [("a.jpg", b"x")], "no pair of image and .cls for 'a'"),
        ([1], [("b.cls", b"1")], "no pair of image and .cls for 'b'"),
        (["one"], [], "is damaged: invalid literal"),
        ([], [], "holds no images"),
        ([1, 10], [], "labels from 1 to 10, not 0 to 9"),
        ([-1], [], "labels from -1"),
    ],
)
def test_wrong_shards(tmp_path, labels, extra, message):
    put_shard(tmp_path / "test.tar", labels, extra=extra)
    with pytest.raises(FreqFormerError, match=message):
        open_images("CIFAR10", tmp_path, "val")


def test_wrong_class_names(tmp_path):
    put_shard(tmp_path / "test.tar", [1])
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(FreqFormerError, match=r"classes.txt names 2 classes, not 10"):
        open_images("CIFAR10", tmp_path, "val")


def test_unusable_cache(tmp_path, monkeypatch):
    put_shard(tmp_path / "test.tar.gz", [1])
    (tmp_path / "file").touch()
    monkeypatch.setenv("FREQFORMER_CACHE", str(tmp_path / "file"))
    with pytest.raises(FreqFormerError, match="set FREQFORMER_CACHE"):
        open_images("CIFAR10", tmp_path, "val")


def count(path):
    return len(open_images("CIFAR10", path, "val"))


def test_two_processes_at_once(tmp_path, cache):
    put_shard(tmp_path / "test.tar.gz", [i % 10 for i in range(100)])
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert list(pool.map(count, [tmp_path] * 4)) == [100] * 4
    assert len(list(cache.iterdir())) == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data under shared/data are not here")
class TestRealData:
    def test_cifar10(self):
        images = open_images("CIFAR10", SHARED / "cifar10", "val")
        assert len(images) == 10_000
        assert images.classes[0] == "airplane"
        keys = [int(images.name(i).rsplit("/")[-1]) for i in range(len(images))]
        assert [key % 10 for key in keys] == images.targets.tolist()
        assert np.bincount(images.targets).tolist() == [1000] * 10
        assert {images.load(i).size for i in range(0, 10_000, 500)} == {(32, 32)}

    def test_fashion_mnist(self):
        images = open_images("FASHION_MNIST", SHARED / "fashion-mnist", "val", limit=100)
        assert np.bincount(images.targets).tolist() == [10] * 10
        assert images.load(99).size == (28, 28)

    def test_imagenet_sample(self):
        images = open_images("IMNET", SHARED / "imagenet-sample", "val")
        assert images.targets.tolist() == list(range(1000))
        assert min(images.load(7).size) == 256
        with pytest.raises(FreqFormerError, match=r"no folder 'train'"):
            open_images("IMNET", SHARED / "imagenet-sample", "train")

    def test_hymenoptera(self):
        for split, counts in (("train", [123, 121]), ("val", [70, 83])):
            images = open_images("FOLDER", SHARED / "hymenoptera", split)
            assert images.classes == ["ants", "bees"]
            assert np.bincount(images.targets).tolist() == counts
