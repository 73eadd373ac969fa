"""`freqformer detect predict`, `freqformer segment predict` and the functions behind them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("segmentation_models_pytorch", reason="the extra dense is not installed")
pytest.importorskip("faster_coco_eval", reason="the extra dense is not installed")

from faster_coco_eval import mask as coco

from freqformer.dense import load_dense
from freqformer.errors import FreqFormerError
from freqformer.tools.dense import detect, segment


def opened(path):
    with Image.open(path) as file:
        file.load()
        return file


@pytest.fixture(scope="module")
def detector(make_detector, tmp_path_factory):
    return make_detector(tmp_path_factory.mktemp("detector") / "run")


@pytest.fixture(scope="module")
def segmenter(make_segmenter, tmp_path_factory):
    return make_segmenter(tmp_path_factory.mktemp("segmenter") / "run")


@pytest.fixture
def shots(make_instances, tmp_path):
    """Three images of different sizes in two folders, two of the same name."""
    make_instances(tmp_path / "shots", train=2, val=1)
    for file in (tmp_path / "shots").glob("*.json"):
        file.unlink()
    return tmp_path / "shots"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Detection


def test_detections_are_written_and_drawn(command, detector, shots, tmp_path):
    before = contents(shots)
    words = ["detect", "predict", "--model-path", detector, "--output-dir", tmp_path / "out", "--score-thr", 0]
    answer = command(*words, shots, "--max-dets", 5)
    assert answer.code == 0, answer.err
    assert answer.err == ""
    assert len(answer.out.splitlines()) == 4
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["0-2.png", "0.png", "1.png", "detections.json"]
    rows = json.loads((tmp_path / "out/detections.json").read_text())
    assert contents(shots) == before
    for path in (shots / "train/0.jpg", shots / "train/1.jpg", shots / "val/0.jpg"):
        own = [row for row in rows if row["file_name"] == str(path)]
        assert 0 < len(own) <= 5
        (found,) = detect(detector, path, score_thr=0.0, max_dets=5)
        assert [row["category"] for row in own] == found.labels
        assert [row["score"] for row in own] == pytest.approx(found.scores.tolist(), abs=1e-5)
        assert all({"box": 3, "disc": 7}[row["category"]] == row["category_id"] for row in own)
        width, height = opened(path).size
        for row, mask in zip(own, found.masks, strict=True):
            decoded = coco.decode(row["segmentation"])
            assert decoded.shape == (height, width)
            assert (decoded.astype(bool) == mask.numpy()).mean() > 0.99
            left, top, w, h = row["bbox"]
            assert -0.1 <= left <= left + w <= width + 0.1
            assert -0.1 <= top <= top + h <= height + 0.1


def test_json_lines_are_json(command, detector, shots, tmp_path):
    words = ["--model-path", detector, "--output-dir", tmp_path / "out", "--json", "--batch-size", 2]
    answer = command("detect", "predict", *words, shots, "--score-thr", 0)
    assert answer.code == 0, answer.err
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert [row["image"] for row in rows] == [str(shots / name) for name in ("train/0.jpg", "train/1.jpg", "val/0.jpg")]
    written = json.loads((tmp_path / "out/detections.json").read_text())
    assert [found for row in rows for found in row["detections"]] == written
    with Image.open(rows[0]["picture"]) as picture:
        picture.load()


def test_batches_change_nothing(detector, shots):
    paths = sorted(shots.rglob("*.jpg"))
    model, _ = load_dense(detector, "detection")
    model.train()
    alone = [found for path in paths for found in detect(model, path)]
    together = list(detect(model, iter(paths), batch_size=3))
    assert model.training
    for one, other in zip(alone, together, strict=True):
        assert one.image == other.image
        torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=1e-3)
    assert [found.image for found in detect(model, [opened(path) for path in paths])] == [
        "image 0",
        "image 1",
        "image 2",
    ]


def test_limits_are_of_one_call_alone(detector, shots):
    model, _ = load_dense(detector, "detection")
    before = dict(model.arguments)
    (few,) = detect(model, shots / "val/0.jpg", max_dets=1, score_thr=0.0)
    assert len(few.labels) == 1
    assert model.arguments == before
    first = next(detect(model, shots / "val/0.jpg", score_thr=1.0))
    assert first.labels == []
    assert model.arguments == before


@pytest.mark.parametrize("kind", ["detect", "segment"])
def test_unreadable_images_are_said_and_skipped(command, detector, segmenter, shots, tmp_path, kind):
    (shots / "train/0.jpg").write_text("no image")
    model = {"detect": detector, "segment": segmenter}[kind]
    answer = command(kind, "predict", "--model-path", model, "--output-dir", tmp_path / "out", shots)
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert str(shots / "train/0.jpg") in answer.err
    assert str(shots / "val/0.jpg") in answer.out
    assert (tmp_path / "out/1.png").exists()


@pytest.mark.parametrize("kind", ["detect", "segment"])
def test_nothing_that_is_there_is_lost(command, refused, detector, segmenter, shots, tmp_path, kind):
    model = {"detect": detector, "segment": segmenter}[kind]
    words = [kind, "predict", "--model-path", model, "--output-dir", tmp_path / "out", shots]
    assert command(*words).code == 0
    before = contents(tmp_path / "out")
    assert "--overwrite" in refused(*words)
    assert contents(tmp_path / "out") == before
    assert command(*words, "--overwrite").code == 0
    # A picture alone is as dear.
    (tmp_path / "other").mkdir()
    (tmp_path / "other/1.png").write_text("mine")
    assert "1.png" in refused(*words[:5], tmp_path / "other", shots)
    assert contents(tmp_path / "other") == {(tmp_path / "other/1.png").relative_to(tmp_path / "other"): b"mine"}


@pytest.mark.parametrize("kind", ["detect", "segment"])
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_images_are_not_written_over(refused, detector, segmenter, tmp_path, kind, more):
    model = {"detect": detector, "segment": segmenter}[kind]
    (tmp_path / "own").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "own/a.png")
    before = contents(tmp_path / "own")
    words = ["--model-path", model, "--output-dir", tmp_path / "own", tmp_path / "own"]
    assert "a.png" in refused(kind, "predict", *words, *more)
    assert contents(tmp_path / "own") == before


@pytest.mark.parametrize("kind", ["detect", "segment"])
def test_what_is_refused_makes_no_folder(refused, detector, segmenter, shots, tmp_path, kind):
    model = {"detect": detector, "segment": segmenter}[kind]
    words = [kind, "predict", "--output-dir", tmp_path / "out"]
    assert "nowhere" in refused(*words, "--model-path", model, tmp_path / "nowhere")
    assert "nowhere" in refused(*words, "--model-path", tmp_path / "nowhere", shots)
    other = {"detect": segmenter, "segment": detector}[kind]
    assert f"freqformer {kind} train" in refused(*words, "--model-path", other, shots)
    wrong = {"detect": [["--score-thr", 2], ["--max-dets", -1], ["--batch-size", 0]]}
    wrong["segment"] = [["--test-mode", "half"], ["--shorter-side", 0]]
    for flags in wrong[kind]:
        assert flags[0] in refused(*words, "--model-path", model, shots, *flags)
    assert not (tmp_path / "out").exists()


# Segmentation


@pytest.mark.parametrize("flags", [[], ["--test-mode", "slide"], ["--shorter-side", 32]])
def test_masks_are_those_of_the_function(command, segmenter, shots, tmp_path, flags):
    words = ["segment", "predict", "--model-path", segmenter, "--output-dir", tmp_path / "out", "--json", shots]
    answer = command(*words, *flags)
    assert answer.code == 0, answer.err
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert len(rows) == 3
    assert json.loads((tmp_path / "out/classes.json").read_text()) == ["ground", "box", "disc"]
    settings = {
        flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(*[iter(flags)] * 2, strict=True)
    }
    for row in rows:
        (expected,) = segment(segmenter, row["image"], **settings)
        with Image.open(row["mask"]) as mask, Image.open(row["image"]) as image, Image.open(row["overlay"]) as over:
            assert mask.mode == "P"
            assert mask.size == image.size == over.size
            assert (np.array(mask) == expected.numpy()).all()
        assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-3)
        assert list(row["shares"].values()) == sorted(row["shares"].values(), reverse=True)
    assert len({row["mask"] for row in rows} | {row["overlay"] for row in rows}) == 6


def test_names_that_look_like_overlays_do_not_clash(command, segmenter, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "a_overlay", "a-2", "a_overlay_overlay"):
        Image.new("RGB", (64, 48)).save(tmp_path / "in" / f"{name}.png")
    words = ["--model-path", segmenter, "--output-dir", tmp_path / "out", "--json", tmp_path / "in"]
    answer = command("segment", "predict", *words)
    assert answer.code == 0, answer.err
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert len({path for row in rows for path in (row["mask"], row["overlay"])}) == 8


def test_a_segmenter_in_memory_is_left_as_it_was(segmenter, shots):
    model, _ = load_dense(segmenter, "segmentation")
    model.train()
    (mask,) = segment(model, Image.open(shots / "val/0.jpg"))
    assert mask.dtype == torch.uint8
    assert model.training
    with pytest.raises(FreqFormerError, match="whole or slide"):
        next(segment(model, shots / "val/0.jpg", test_mode="half"))
    with pytest.raises(FreqFormerError, match="at least 1 pixel"):
        next(segment(model, shots / "val/0.jpg", shorter_side=0))


@pytest.mark.parametrize("size", [(1, 1), (500, 1), (33, 47)])
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_images_of_any_size(detector, segmenter, size, mode):
    image = Image.new("RGB", size, (200, 30, 30))
    (mask,) = segment(segmenter, image, test_mode=mode)
    assert mask.shape == size[::-1]
    (found,) = detect(detector, image)
    assert found.masks.shape[1:] == size[::-1]
