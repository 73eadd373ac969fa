import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from freqformer.checkpoints import save_model
from freqformer.cli import _run
from freqformer.factory import create_model, describe_model


@pytest.fixture
def checkpoint(tmp_path):
    """A FreqFormer with random weights for the digits, as a run leaves it."""
    torch.manual_seed(0)
    model = create_model("test_freqformer", num_classes=10)
    folder = tmp_path / "run"
    folder.mkdir()
    save_model(folder, model.state_dict(), describe_model(model, {}, [str(digit) for digit in range(10)]))
    return folder


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("kind", ["spectrum", "response", "attention", "bands"])
def test_each_kind_writes_a_picture_and_a_page_and_loses_nothing(checkpoint, images, tmp_path, capsys, kind):
    words = ["visualize", kind, str(checkpoint), "--output-dir", str(tmp_path / "out"), str(images)]
    assert _run(words, debug=True) == 0
    png, page = capsys.readouterr().out.split()
    with Image.open(png) as picture:
        assert picture.format == "PNG"
    text = (tmp_path / "out" / f"{kind}.html").read_text()
    assert page.endswith(f"{kind}.html")
    assert "<table" in text
    assert f"freqformer visualize {kind} {checkpoint} {images}" in re.sub(r"\s+", " ", text)
    assert _run(words, debug=False) == 2
    assert "is there already" in capsys.readouterr().err
    assert _run([*words, "--overwrite"], debug=False) == 0


def test_several_models_stand_side_by_side(checkpoint, images, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    model = create_model("test_gfnet", num_classes=10)
    save_model(other, model.state_dict(), describe_model(model, {}, None))
    words = ["visualize", "spectrum", str(checkpoint), str(images), "--against", str(other)]
    assert _run([*words, "--output-dir", str(tmp_path / "out")], debug=True) == 0
    text = (tmp_path / "out" / "spectrum.html").read_text()
    assert "<td>run</td>" in text
    assert "<td>other</td>" in text


@pytest.mark.parametrize("spelling", ["run", "./run/", "images/../run", "link"])
def test_a_checkpoint_is_not_compared_with_itself(checkpoint, images, tmp_path, capsys, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(checkpoint, target_is_directory=True)
    assert _run(["visualize", "spectrum", "run", "images", "--against", spelling], debug=False) == 2
    assert "named twice" in capsys.readouterr().err


def test_bands_of_many_images_takes_some_and_says_so(checkpoint, images, tmp_path, capsys):
    for number in range(2, 6):
        (images / f"{number}.png").write_bytes((images / "0.png").read_bytes())
    # Those between are not read.
    (images / "1.png").write_text("no picture")
    words = ["--cutoffs", "0.5", "--limit", "3", "--output-dir", str(tmp_path / "out")]
    assert _run(["visualize", "bands", str(checkpoint), str(images), *words], debug=True) == 0
    text = re.sub(r"\s+", " ", (tmp_path / "out" / "bands.html").read_text())
    assert "3 of 6 images, evenly chosen" in text
    assert "--limit 3" in text


def test_response_needs_no_images(checkpoint, tmp_path):
    assert _run(["visualize", "response", str(checkpoint), "--output-dir", str(tmp_path / "out")], debug=True) == 0


@pytest.mark.slow
def test_bands_of_labelled_images_are_scores_of_the_evaluation(checkpoint, tmp_path, capsys):
    words = ["--data-set", "DIGITS", "--limit", "40", "--num-workers", "0"]
    out = ["--output-dir", str(tmp_path / "out"), "--cutoffs", "0.5", "1.4142"]
    assert _run(["visualize", "bands", str(checkpoint), *words, *out], debug=True) == 0
    capsys.readouterr()
    evaluation = ["eval", "--model-path", str(checkpoint), *words, "--json"]
    found = {}
    for name, band in (("whole", []), ("low", ["--band", "0", "0.5"])):
        assert _run([*evaluation, *band], debug=True) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found["whole"]["images"] == 40
    cells = re.findall(r"<td>(.*?)</td>", (tmp_path / "out" / "bands.html").read_text())
    assert cells[:4] == ["run", "none", "–", f"{found['whole']['top1']:.4g}"]
    assert cells[4:8] == ["run", "low-pass", "0.5", f"{found['low']['top1']:.4g}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "data", "measure"), [("detector", "instances", "AP50"), ("segmenter", "scenes", "mIoU")]
)
def test_bands_of_detectors_and_segmenters(request, tmp_path, make, data, measure):
    run = request.getfixturevalue(f"make_{make}")(tmp_path / "run")
    folder = request.getfixturevalue(f"make_{data}")(tmp_path / "data")
    words = ["visualize", "bands", str(run), "--data-path", str(folder), "--num-workers", "0", "--cutoffs", "0.5"]
    assert _run([*words, "--output-dir", str(tmp_path / "out")], debug=True) == 0
    assert measure in (tmp_path / "out" / "bands.html").read_text()
    # The same images, named one by one.
    named = {
        "detector": {"--val-json": "instances_val.json", "--images-dir": "val"},
        "segmenter": {"--val-images": "val/images", "--val-masks": "val/masks", "--class-file": "classes.txt"},
    }
    words = ["visualize", "bands", str(run), "--num-workers", "0", "--cutoffs", "0.5"]
    for flag, place in named[make].items():
        words += [flag, str(folder / place)]
    assert _run([*words, "--output-dir", str(tmp_path / "named")], debug=True) == 0
    pages = [(tmp_path / name / "bands.html").read_text() for name in ("out", "named")]
    assert len({tuple(re.findall(r"<td>(.*?)</td>", page)) for page in pages}) == 1
    assert named[make].keys() <= set(re.findall(r"--[a-z-]+", pages[1]))


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("spectrum", ["broken.png"], "cannot read image .*broken.png: not an image"),
        ("attention", ["broken.png"], "cannot read image .*broken.png: not an image"),
        ("response", ["nothing.png"], "there is no image or folder"),
        ("spectrum", ["empty"], "has no images"),
        ("bands", [], "bands needs images, or a data set"),
        ("bands", ["images", "--data-set", "DIGITS"], "not both"),
        ("bands", ["--data-path", ".", "--val-json", "a.json"], "--val-json is for models of detection"),
        ("bands", ["--data-path", ".", "--ignore-index", "null"], "--ignore-index is for models of segmentation"),
        ("bands", ["--data-set", "DIGITS", "--limit", "0"], "--limit must be at least 1"),
        ("bands", ["images", "--cutoffs", "3"], "cutoffs are shares"),
        ("attention", ["images", "--query", "2", "0"], "two shares"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    checkpoint, images, tmp_path, capsys, monkeypatch, kind, words, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    assert _run(["visualize", kind, "run", *words], debug=False) == 2
    line = capsys.readouterr().err
    assert re.search(message, line)
    assert line.count("\n") == 1
    assert not (tmp_path / "pictures").exists()


def test_exported_files_and_models_without_attention_are_refused(tmp_path, images, capsys):
    (tmp_path / "model.onnx").write_bytes(b"")
    assert _run(["visualize", "spectrum", str(tmp_path / "model.onnx"), str(images)], debug=False) == 2
    assert "exported" in capsys.readouterr().err
    model = create_model("test_gfnet", num_classes=2)
    save_model(tmp_path, model.state_dict(), describe_model(model, {}, None))
    assert _run(["visualize", "attention", str(tmp_path), str(images)], debug=False) == 2
    assert "its blocks are spectral" in capsys.readouterr().err


def test_the_largest_class_is_of_the_images_that_are_evaluated(tmp_path):
    from freqformer.tools.views import _largest_class

    for name, count in (("a", 3), ("b", 1)):
        (tmp_path / "val" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / "val" / name / f"{number}.png")
    data = {"data_set": "FOLDER", "data_path": str(tmp_path), "split": "val"}
    assert _largest_class({**data, "limit": 4}) == 0.75
    assert _largest_class({**data, "limit": 2}) == 0.5
