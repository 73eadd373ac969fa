"""Images that cannot be read, folders that vanish and worker processes that die."""

import csv
import json
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from freqformer import FreqFormerError
from freqformer.data import Samples
from freqformer.engine import run
from freqformer.engine.bad_images import BadImages
from freqformer.engine.datamodule import worker_died
from freqformer.tasks import Classification


@pytest.fixture
def data(class_folders):
    """Two epochs of three steps, and four bad images in each split."""
    root = class_folders(train=10, val=4)
    for split in ("train", "val"):
        folder = root / split / "dog"
        whole = (folder / "0.png").read_bytes()
        (folder / "cut.png").write_bytes(whole[:90])
        (folder / "empty.jpg").touch()
        (folder / "text \n\udcff.png").write_text("no image")
        os.symlink("nowhere.png", folder / "link.png")
    return root


@pytest.fixture
def settings(tiny, data):
    def make(folder, **changes):
        usual = {"data_set": "FOLDER", "data_path": str(data), "limit_train": None, "batch_size": 8, "epochs": 2}
        return tiny(folder, **{**usual, **changes})

    return make


@pytest.fixture
def flags(data):
    return ["--data-set", "FOLDER", "--data-path", data, "--limit-train", "none", "--batch-size", "8", "--epochs", "2"]


def listed(folder):
    with (folder / "bad_images.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        return list(csv.DictReader(stream))


BAD = {"cut.png", "empty.jpg", "text \n\udcff.png", "link.png"}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_goes_on_without_bad_images_and_lists_them(settings, data, tmp_path, workers, capsys):
    metrics = run(settings(tmp_path / "run", num_workers=workers))
    rows = listed(tmp_path / "run")
    assert {row["image"] for row in rows if row["split"] == "val"} == {str(data / "val/dog" / name) for name in BAD}
    assert {row["image"] for row in rows if row["split"] == "train"} <= {str(data / "train/dog" / name) for name in BAD}
    assert len(rows) == len({row["image"] for row in rows}) > 4
    assert all(row["reason"] for row in rows)
    assert metrics["best"]["images"] == 12
    assert metrics["best"]["bad_images"] == 4
    assert f"skipped {len(rows)} images that cannot be read" in capsys.readouterr().out


def test_a_run_without_bad_images_lists_none(finished):
    assert not (finished / "bad_images.csv").exists()
    assert json.loads((finished / "metrics.json").read_text())["best"]["bad_images"] == 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_more_than_the_limit_is_one_line(refused, words, flags, data, tmp_path, split):
    other = {"train": "val", "val": "train"}[split]
    for name in BAD:
        (data / other / "dog" / name).unlink()
    line = refused(*words(tmp_path / "run", *flags, "--max-bad-images", 2, "--epochs", 9))
    assert "3 images cannot be read" in line or "4 images cannot be read" in line
    assert "more than --max-bad-images 2" in line
    assert "bad_images.csv" in line
    assert f"{split}/dog" in line
    assert len(listed(tmp_path / "run")) in (3, 4)


def test_none_may_be_bad(refused, words, flags, tmp_path):
    line = refused(*words(tmp_path / "run", *flags, "--max-bad-images", 0))
    assert "more than --max-bad-images 0; the first is " in line


@pytest.mark.slow
def test_the_count_goes_on_after_a_resume_and_mended_images_leave_it(refused, command, words, flags, data, tmp_path):
    folder = tmp_path / "run"
    refused(*words(folder, *flags, "--max-bad-images", 3, "--epochs", 4))
    rows = listed(folder)
    line = refused("train", "--output-dir", folder, "--resume")
    assert f"{len(rows)} images cannot be read" in line
    assert listed(folder) == rows
    for row in rows:
        os.unlink(row["image"])
        shutil.copy(data / "train/dog/0.png", row["image"])
    answer = command("train", "--output-dir", folder, "--resume", "--max-bad-images", 8 - len(rows))
    assert answer.code == 0, answer.err
    assert len(listed(folder)) == 8


def test_overwriting_a_run_forgets_its_list(settings, data, tmp_path):
    run(settings(tmp_path / "run", epochs=1))
    for path in [data / split / "dog" / name for split in ("train", "val") for name in BAD]:
        path.unlink()
    run(settings(tmp_path / "run", overwrite=True, epochs=1))
    assert not (tmp_path / "run" / "bad_images.csv").exists()


def test_an_interrupted_run_with_bad_images_resumes_exactly(settings, command, words, tmp_path, signal_at, left_behind):
    run(settings(tmp_path / "whole"))
    disarm = signal_at(4)
    with pytest.raises(BaseException, match="--resume"):
        run(settings(tmp_path / "halted"))
    disarm()
    run(settings(tmp_path / "halted", resume="last"))
    assert left_behind(tmp_path / "halted") == left_behind(tmp_path / "whole")
    key = lambda row: row["image"]  # noqa: E731
    assert sorted(listed(tmp_path / "halted"), key=key) == sorted(listed(tmp_path / "whole"), key=key)


def test_the_figures_are_those_of_the_images_that_can_be_read(command, settings, data, tmp_path):
    run(settings(tmp_path / "run", epochs=1))
    flags = ["eval", "--model-path", tmp_path / "run", "--data-set", "FOLDER", "--data-path", data, "--num-workers", 0]
    with_bad = json.loads(command(*flags, "--batch-size", 3, "--json").out)
    answer = command(*flags)
    assert "12 images" in answer.out
    assert "4 more could not be read" in answer.out
    for name in BAD:
        (data / "val/dog" / name).unlink()
    without = json.loads(command(*flags, "--batch-size", 3, "--json").out)
    assert with_bad["bad_images"] == 4
    assert without["bad_images"] == 0
    assert with_bad["images"] == without["images"] == 12
    for name in ("top1", "top5", "loss"):
        assert with_bad[name] == pytest.approx(without[name], rel=1e-5)


def test_an_evaluation_has_its_limit(refused, settings, data, tmp_path):
    run(settings(tmp_path / "run", epochs=1))
    flags = ["eval", "--model-path", tmp_path / "run", "--data-set", "FOLDER", "--data-path", data, "--num-workers", 0]
    assert "more than --max-bad-images 2; the first is" in refused(*flags, "--max-bad-images", 2)
    assert "--max-bad-images" in refused(*flags, "--max-bad-images", -1)
    for path in (data / "val").rglob("*.png"):
        if path.is_file():
            path.write_text("no image")
    assert "none of the images to evaluate on can be read" in refused(*flags)


@pytest.mark.parametrize(
    ("split", "said"), [("train", "none of a batch's images can be read"), ("val", "none of the images to evaluate on")]
)
def test_a_split_of_nothing_but_bad_images(refused, words, flags, data, tmp_path, split, said):
    for path in (data / split).rglob("*.png"):
        if path.is_file():
            path.write_text("no image")
    assert said in refused(*words(tmp_path / "run", *flags))


def test_class_names_that_are_no_text(command, words, tmp_path):
    odd = ["plain", "ü ñ", "bytes \udcff", "-rf", "two\nlines", "a,b", r"$\x$"]
    for split in ("train", "val"):
        for target, label in enumerate(odd):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng([target, i]).integers(0, 255, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    flags = ["--data-set", "FOLDER", "--data-path", tmp_path / "data", "--limit-train", "none"]
    answer = command(*words(tmp_path / "run", *flags))
    assert answer.code == 0, answer.err
    eval_ = ["eval", "--model-path", tmp_path / "run", *flags[:4], "--num-workers", 0, "--json"]
    answer = command(*eval_, "--per-class", tmp_path / "classes.csv")
    assert answer.code == 0, answer.err
    with (tmp_path / "classes.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        assert [row["class"] for row in csv.DictReader(stream)] == sorted(odd)
    image = tmp_path / "data/val/bytes \udcff/0.png"
    for more in ([], ["--json"]):
        answer = command("predict", "--model-path", tmp_path / "run", "--top-k", 7, *more, image)
        assert answer.code == 0, answer.err


def test_two_processes_share_one_list(tmp_path):
    one, two = (BadImages(4, tmp_path) for _ in range(2))
    one._add([("a", "x"), ("b", "x"), ("a", "x")], "train", None)
    two._add([("b", "x"), ("c", "x")], "train", None)
    one._add([("c", "x"), ("d", "x")], "val", None)
    assert [row["image"] for row in listed(tmp_path)] == ["a", "b", "c", "d"]
    with pytest.raises(FreqFormerError, match="5 images cannot be read, more than --max-bad-images 4; the first is a"):
        two._add([("e", "x")], "train", None)


def test_a_list_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(FreqFormerError, match=r"^cannot write .*bad_images.csv: No such file.*--resume$"):
        BadImages(4, tmp_path / "gone")._add([("a", "x")], "train", None)


@pytest.mark.slow
@pytest.mark.parametrize(("when", "left"), [("training_step", "nothing"), ("validation_step", "an empty folder")])
def test_data_that_vanish_are_named_and_the_run_resumes(settings, data, tmp_path, monkeypatch, left_behind, left, when):
    run(settings(tmp_path / "whole"))
    folder = data / ("train" if when == "training_step" else "val")
    original, calls = getattr(Classification, when), iter(range(10**6))

    def hooked(self, batch, batch_idx):
        if next(calls) == 1:
            folder.rename(tmp_path / "away")
            if left == "an empty folder":
                folder.mkdir()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Classification, when, hooked)
    with pytest.raises(FreqFormerError) as error:
        run(settings(tmp_path / "run", max_bad_images=20))
    assert str(folder) in str(error.value)
    assert ("is gone" if left == "nothing" else "is empty") in str(error.value)
    assert "continue with --resume" in str(error.value)
    monkeypatch.setattr(Classification, when, original)
    if folder.exists():
        folder.rmdir()
    (tmp_path / "away").rename(folder)
    run(settings(tmp_path / "run", resume="last"))
    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_worker_is_one_line_and_the_run_resumes(settings, tmp_path, monkeypatch, left_behind):
    run(settings(tmp_path / "whole", num_workers=2))
    original = Samples.__getitem__

    def hooked(self, key):
        if isinstance(key, tuple) and key[0] == 1:  # In the second epoch; the first one's checkpoint is kept.
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, key)

    monkeypatch.setattr(Samples, "__getitem__", hooked)
    with pytest.raises(FreqFormerError, match=r"^a process that loads images died.*--num-workers.*--resume$"):
        run(settings(tmp_path / "run", num_workers=2))
    monkeypatch.setattr(Samples, "__getitem__", original)
    run(settings(tmp_path / "run", num_workers=2, resume="last"))
    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "whole")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", "died, most often because memory ran out"),
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", r"died \(Killed\), most often"),
        (
            "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit.",
            r"died \(Bus error\), its shared memory is full: .*/dev/shm",
        ),
    ],
)
def test_what_torch_says_of_dead_workers(message, said):
    error = worker_died(RuntimeError(message), "; continue with --resume")
    with pytest.raises(FreqFormerError, match=f"{said}.*--resume$"):
        raise error


def test_other_errors_are_not_dead_workers():
    assert worker_died(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert worker_died(KeyError("DataLoader worker (pid(s) 1) exited unexpectedly")) is None
