"""`freqformer detect eval` and `freqformer segment eval`."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("segmentation_models_pytorch", reason="the extra dense is not installed")
pytest.importorskip("faster_coco_eval", reason="the extra dense is not installed")

from freqformer.engine.evaluate_dense import (
    DetectionEvaluation,
    SegmentationEvaluation,
    evaluate_detector,
    evaluate_segmenter,
)
from freqformer.errors import FreqFormerError
from freqformer.tasks.segmentation import segmentation_scores
from freqformer.tools.dense import detect, segment

CPU = {"num_workers": 0, "accelerator": "cpu", "precision": "32-true"}


def opened(path):
    with Image.open(path) as file:
        file.load()
        return file


@pytest.fixture(scope="module")
def instances(make_instances, tmp_path_factory):
    return make_instances(tmp_path_factory.mktemp("instances") / "data", splits=("test", "val"))


@pytest.fixture(scope="module")
def scenes(make_scenes, tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("scenes") / "data", splits=("test", "val"))


@pytest.fixture(scope="module")
def detector(make_detector, tmp_path_factory):
    return make_detector(tmp_path_factory.mktemp("detector") / "run")


@pytest.fixture(scope="module")
def segmenter(make_segmenter, tmp_path_factory):
    return make_segmenter(tmp_path_factory.mktemp("segmenter") / "run")


def found_by(model, data, **settings):
    return evaluate_detector(DetectionEvaluation(str(model), data_path=str(data), **CPU, **settings))


def segmented_by(model, data, **settings):
    return evaluate_segmenter(SegmentationEvaluation(str(model), data_path=str(data), **CPU, **settings))


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_scores_are_pycocotools_of_the_written_files(detector, instances, tmp_path, split, capfd):
    pytest.importorskip("pycocotools", reason="pycocotools, which these scores are compared with, is not installed")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    figures = found_by(detector, instances, split=split, output_dir=str(tmp_path / "out"))
    truth = COCO(str(instances / f"instances_{split}.json"))
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        rows = json.loads((tmp_path / f"out/results.{kind}.json").read_text())
        assert rows
        theirs = COCOeval(truth, truth.loadRes(rows), kind)
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
        for place, name in ((0, "AP"), (1, "AP50"), (2, "AP75"), (8, "AR")):
            assert figures[f"{prefix}{name}"] == pytest.approx(theirs.stats[place], abs=1e-6), (kind, name)
    assert figures["images"] == {"val": 5, "test": 8}[split]
    for name in ("metrics.json", "per_class.csv", "per_class.png", "best.png", "worst.png", "report.html"):
        assert (tmp_path / "out" / name).exists(), name
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert written["AP"] == figures["AP"]
    assert [row["name"] for row in written["per_class"]] == ["box", "disc"]


@pytest.mark.slow
def test_limits_of_detections(detector, instances, tmp_path):
    def rows(name, **settings):
        found_by(detector, instances, output_dir=str(tmp_path / name), **settings)
        return json.loads((tmp_path / name / "results.bbox.json").read_text())

    every = rows("all")
    threshold = sorted(row["score"] for row in every)[len(every) // 2]
    above = rows("above", score_thr=threshold)
    assert 0 < len(above) < len(every)
    assert all(row["score"] >= threshold - 1e-6 for row in above)
    few = rows("few", max_dets=2)
    assert all(sum(row["image_id"] == image for row in few) <= 2 for image in range(10, 15))
    other = rows("larger", input_size=96)
    assert other != every


def test_a_detector_alone_finds_what_its_evaluation_does(detector, instances, tmp_path):
    found_by(detector, instances, output_dir=str(tmp_path / "out"))
    rows = json.loads((tmp_path / "out/results.bbox.json").read_text())
    (found,) = detect(detector, instances / "val/0.jpg")
    theirs = sorted(row["score"] for row in rows if row["image_id"] == 10)
    assert sorted(found.scores.tolist()) == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(("mode", "shorter"), [("whole", None), ("slide", None), ("whole", 32), ("slide", 64)])
def test_the_scores_of_segmentation_are_those_of_its_masks(segmenter, scenes, mode, shorter):
    figures = segmented_by(segmenter, scenes, test_mode=mode, shorter_side=shorter, batch_size=2)
    counts = torch.zeros(3, 3, dtype=torch.int64)
    for number in range(5):
        image = opened(scenes / f"val/images/{number}.jpg")
        truth = np.array(opened(scenes / f"val/masks/{number}.png"))
        (mask,) = segment(segmenter, image, test_mode=mode, shorter_side=shorter)
        for true, predicted in zip(truth.ravel(), mask.numpy().ravel(), strict=True):
            if true != 255:
                counts[true, predicted] += 1
    for name, value in segmentation_scores(counts).items():
        assert figures[name] == pytest.approx(value, abs=1e-6), name
    assert [row["pixels"] for row in figures["per_class"]] == counts.sum(1).tolist()


def test_segmentation_scores_by_hand():
    # The last class neither occurs nor is predicted; the third is predicted alone.
    counts = torch.tensor([[6, 1, 1, 0], [2, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    scores = segmentation_scores(counts)
    assert scores["accuracy"] == pytest.approx(10 / 14)
    assert scores["mIoU"] == pytest.approx((6 / 10 + 4 / 7 + 0) / 3)
    assert scores["mean_accuracy"] == pytest.approx((6 / 8 + 4 / 6) / 2)


def test_the_command_line_of_detection(command, refused, detector, instances, tmp_path):
    words = ["detect", "eval", instances, "--model-path", detector, "--num-workers", 0, "--accelerator", "cpu"]
    answer = command(*words, "--output-dir", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert "AP50" in answer.out
    assert "5 images" in answer.out
    before = (tmp_path / "out/metrics.json").read_text()
    assert "--overwrite" in refused(*words, "--output-dir", tmp_path / "out")
    assert (tmp_path / "out/metrics.json").read_text() == before
    answer = command(*words, "--output-dir", tmp_path / "out", "--overwrite", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["images"] == 5


def test_the_command_line_of_segmentation(command, refused, segmenter, scenes, tmp_path):
    words = ["segment", "eval", scenes, "--model-path", segmenter, "--num-workers", 0, "--accelerator", "cpu"]
    answer = command(*words, "--output-dir", tmp_path / "out", "--test-mode", "slide", "--input-size", 32, 48)
    assert answer.code == 0, answer.err
    assert "mIoU" in answer.out
    with (tmp_path / "out/per_class.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["ground", "box", "disc"]
    assert "--overwrite" in refused(*words, "--output-dir", tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--score-thr", "-1"], "--score-thr must be between 0 and 1"),
        (["--max-dets", "0"], "--max-dets must be at least 1"),
        (["--input-size", "0"], "--input-size must be at least 1"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--split", "nowhere"], "nowhere"),
        (["--val-json", "nowhere.json"], "nowhere.json"),
        (["--score-threshold", "1"], "did you mean --score-thr?"),
    ],
)
def test_wrong_settings_are_one_line(refused, detector, instances, flags, said):
    assert said in refused("detect", "eval", instances, "--model-path", detector, "--num-workers", 0, *flags)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--shorter-side", "0"], "--shorter-side must be at least 1"),
        (["--test-mode", "both"], "--test-mode must be whole or slide"),
        (["--input-size", "0"], "--input-size must be at least 1"),
    ],
)
def test_wrong_settings_of_segmentation_are_one_line(refused, segmenter, scenes, flags, said):
    assert said in refused("segment", "eval", scenes, "--model-path", segmenter, "--num-workers", 0, *flags)


def test_data_of_other_classes_are_refused(make_detector, make_segmenter, instances, scenes, tmp_path):
    birds = make_detector(tmp_path / "birds", "retinanet", ("owl", "wren"))
    with pytest.raises(FreqFormerError, match=r"annotations of 'box', which is not among the model's 2 classes"):
        found_by(birds, instances)
    with pytest.raises(FreqFormerError, match="class-count mismatch"):
        segmented_by(make_segmenter(tmp_path / "two", ("ground", "box")), scenes)


@pytest.mark.slow
def test_classes_are_matched_by_name(make_detector, instances, tmp_path, detector):
    # The same network with its outputs named the other way round finds the other class.
    other = make_detector(tmp_path / "other", label_names=("disc", "box"), category_ids=(7, 3))
    found_by(other, instances, output_dir=str(tmp_path / "a"))
    found_by(detector, instances, output_dir=str(tmp_path / "b"))
    ours, theirs = (json.loads((tmp_path / name / "results.bbox.json").read_text()) for name in "ab")
    assert [row["category_id"] for row in ours] == [{3: 7, 7: 3}[row["category_id"]] for row in theirs]


def test_annotations_without_an_object_are_refused(detector, make_instances, tmp_path):
    root = make_instances(tmp_path / "data", train=1, val=2)
    content = json.loads((root / "instances_val.json").read_text())
    for row in content["annotations"]:
        row["iscrowd"] = 1
    (root / "instances_val.json").write_text(json.dumps(content))
    with pytest.raises(FreqFormerError, match="no object"):
        found_by(detector, root)


def test_unreadable_images_are_left_out_of_the_scores(detector, make_instances, tmp_path):
    root = make_instances(tmp_path / "data", train=1, val=3)
    (root / "val/1.jpg").write_bytes(b"no image")
    figures = found_by(detector, root, output_dir=str(tmp_path / "out"))
    assert (figures["images"], figures["bad_images"]) == (2, 1)
    rows = json.loads((tmp_path / "out/results.bbox.json").read_text())
    assert {row["image_id"] for row in rows} == {10, 12}
    with pytest.raises(FreqFormerError, match="more than --max-bad-images 0"):
        found_by(detector, root, max_bad_images=0)


@pytest.mark.parametrize("command_name", ["detect", "segment"])
def test_a_model_of_another_task_is_refused(refused, detector, segmenter, instances, command_name):
    other = segmenter if command_name == "detect" else detector
    line = refused(command_name, "eval", instances, "--model-path", other)
    assert f"freqformer {command_name} train" in line


@pytest.mark.slow
def test_two_processes_score_as_one(detector, segmenter, instances, scenes, tmp_path):
    one = found_by(detector, instances, output_dir=str(tmp_path / "1"))
    two = found_by(detector, instances, output_dir=str(tmp_path / "2"), devices=2)
    assert two["images"] == one["images"] == 5
    assert two["AP"] == pytest.approx(one["AP"], abs=1e-4)
    counts = [len(json.loads((tmp_path / name / "results.bbox.json").read_text())) for name in "12"]
    assert counts[0] == counts[1]
    one, two = (segmented_by(segmenter, scenes, devices=devices) for devices in (1, 2))
    for name in ("mIoU", "accuracy", "loss"):
        assert two[name] == pytest.approx(one[name], abs=1e-4)
