"""COCO's scores: by hand, against pycocotools, and of the ground truth itself."""

import contextlib
import copy
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as rle
from hypothesis import given, settings
from hypothesis import strategies as st

from freqformer.errors import FreqFormerError
from freqformer.tasks.coco_scores import coco_report, coco_scores, results_for, results_of, write_results

SHARED = Path(os.environ.get("FREQFORMER_SHARED", Path(__file__).parents[3] / "shared")) / "data"
SIZES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RECALLS = ("AR", "ARs", "ARm", "ARl")


def _truth(*boxes, images=1, **more):
    """One category 7 ("cell"), each box (image, x, y, width, height)."""
    return {
        "images": [{"id": 10 + image, "width": 100, "height": 100} for image in range(images)],
        "annotations": [{"id": n, "image_id": 10 + image, "category_id": 7, "bbox": box, **more}
                        for n, (image, *box) in enumerate(boxes)],
        "categories": [{"id": 7, "name": "cell"}],
    }  # fmt: skip


def _found(*boxes):
    return [{"image_id": 10, "category_id": 7, "bbox": box, "score": score} for score, *box in boxes]


def test_scores_by_hand():
    truth = _truth((0, 0, 0, 10, 10), (0, 50, 50, 10, 10))
    # Best first: a hit, a miss, a hit of intersection over union 60 / 140 + 0 -> below every threshold.
    half = coco_scores(truth, _found((0.9, 0, 0, 10, 10), (0.8, 20, 20, 10, 10), (0.7, 54, 50, 10, 10)))
    # Precision is 1 up to recall 0.5, which is 51 of the 101 recalls, and 0 above.
    assert half["AP"] == half["AP50"] == pytest.approx(51 / 101)
    assert half["AR"] == half["ARs"] == 0.5
    assert math.isnan(half["APm"])
    assert math.isnan(half["ARl"])
    # The second is found at intersection over union 0.8, so at 7 of the 10 thresholds, behind a false one.
    most = coco_scores(truth, _found((0.9, 0, 0, 10, 10), (0.8, 20, 20, 10, 10), (0.7, 50, 50, 10, 8)))
    assert most["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert most["AP"] == pytest.approx((7 * (51 + 50 * 2 / 3) + 3 * 51) / 10 / 101)
    assert most["AR"] == pytest.approx((7 * 1 + 3 * 0.5) / 10)
    assert most["AP75"] == most["AP50"]


def test_a_crowd_is_neither_found_nor_missed():
    truth = _truth((0, 0, 0, 10, 10), (0, 50, 50, 40, 40))
    truth["annotations"][1]["iscrowd"] = 1
    scores, classes = coco_report(truth, _found((0.9, 55, 55, 5, 5), (0.8, 60, 60, 5, 5), (0.7, 0, 0, 10, 10)))
    assert scores["AP"] == 1
    assert classes == [{"name": "cell", "images": 1, "instances": 1, "AP": 1.0, "AP50": 1.0}]


def test_the_class_table_follows_the_ids_and_has_the_masks():
    truth = _truth((0, 0, 0, 10, 10), (1, 0, 0, 10, 10), images=3, segmentation=[[0, 0, 10, 0, 10, 10, 0, 10]])
    truth["categories"].insert(0, {"id": 9, "name": "$rare"})
    found = _found((0.5, 0, 0, 10, 10))
    found[0]["segmentation"] = rle.encode(np.asfortranarray(np.pad(np.ones((10, 10), np.uint8), ((0, 90), (0, 90)))))
    scores, (cell, rare) = coco_report(truth, found, ("bbox", "segm"))
    assert cell["images"] == cell["instances"] == 2
    assert cell["AP"] == cell["mask_AP"] == scores["AP"] == scores["mask_AP50"] == pytest.approx(51 / 101)
    assert (rare["name"], rare["images"], rare["instances"]) == ("$rare", 0, 0)
    assert math.isnan(rare["AP"])
    assert math.isnan(rare["mask_AP50"])


@pytest.mark.parametrize("kinds", [("bbox",), ("bbox", "segm")])
def test_nothing_found_and_nothing_to_find(kinds, capsys):
    truth = _truth((0, 0, 0, 10, 10), segmentation=[[0, 0, 10, 0, 10, 10]])
    assert coco_scores(truth, [], kinds)["AP"] == 0
    found = _found((0.5, 0, 0, 10, 10))
    found[0]["segmentation"] = rle.encode(np.ones((100, 100), np.uint8, order="F"))
    for empty in ({"annotations": []}, {"annotations": [], "categories": []}):
        for results in ([], found):
            assert all(map(math.isnan, coco_scores(truth | empty, results, kinds).values()))
    assert all(map(math.isnan, coco_scores({key: [] for key in truth}, [], kinds).values()))
    assert capsys.readouterr() == ("", "")


def test_what_does_not_belong_together_is_refused():
    truth = _truth((0, 0, 0, 10, 10))
    with pytest.raises(FreqFormerError, match="image 11, which the ground truth does not list"):
        coco_scores(truth, [{"image_id": 11, "category_id": 7, "bbox": [0, 0, 1, 1], "score": 1.0}])
    with pytest.raises(FreqFormerError, match="annotation 0 has no mask"):
        coco_scores(truth, [], ("segm",))
    broken = {"boxes": torch.tensor([[0, 0, math.nan, 1]]), "labels": torch.zeros(1), "scores": torch.ones(1)}
    with pytest.raises(FreqFormerError, match="image 10: a predicted box or score is not finite"):
        results_of(10, broken, [7], masks=False)


@pytest.mark.parametrize("binary", [False, True])
def test_rows_of_a_detection(binary, tmp_path):
    masks = torch.zeros(2, 1, 30, 40)
    masks[0, 0, 3:9, 5:20] = 0.6
    masks[1, 0, 3:9, 5:20] = 0.5
    detection = {
        "boxes": torch.tensor([[5.0, 3.0, 20.0, 9.0], [0.123, 0.456, 1.789, 30.0]]),
        "labels": torch.tensor([1, 0]),
        "scores": torch.tensor([0.9, 0.123456789]),
        "masks": masks[:, 0] > 0.5 if binary else masks,
    }
    rows = results_of(10, detection, [7, 8], masks=True)
    assert [row["category_id"] for row in rows] == [8, 7]
    assert [row["bbox"] for row in rows] == [[5, 3, 15, 6], [0.12, 0.46, 1.67, 29.54]]
    assert [row["score"] for row in rows] == [0.9, 0.123457]
    assert [rle.decode(row["segmentation"]).sum() for row in rows] == [90, 0]
    assert (rle.decode(rows[0]["segmentation"]) == (masks[0, 0] > 0.5).numpy()).all()
    write_results(tmp_path / "results.json", rows)
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    assert all("segmentation" not in row for row in results_of(10, detection, [7, 8], masks=False))
    assert [set(row) for row in results_for(rows, "segm")] == [{"image_id", "category_id", "score", "segmentation"}] * 2
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)}
    assert results_of(10, nothing | {"masks": torch.zeros(0, 1, 30, 40)}, [7, 8], masks=True) == []


def _mask(generator, box, side):
    """An ellipse in the box, with holes."""
    y, x = np.mgrid[:side, :side] + 0.5
    inside = ((x - box[0] - box[2] / 2) / box[2]) ** 2 + ((y - box[1] - box[3] / 2) / box[3]) ** 2 < 0.25
    return np.asfortranarray(inside & (generator.random((side, side)) < 0.9), dtype=np.uint8)


def _lengths(mask, form):
    code = rle.encode(mask)
    if form == "compressed":
        return {"size": code["size"], "counts": code["counts"].decode()}
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [-1]])))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def _polygon(box):
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height / 2]]


@st.composite
def _problems(draw):
    """Ground truth with crowds and each form of mask, and detections near it and far from it, with equal scores."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    side, classes = 140, [3, 4, 11]
    truth = {"images": [], "annotations": [], "categories": [{"id": id, "name": str(id)} for id in classes]}
    results = []
    for image in draw(st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True)):
        truth["images"].append({"id": image, "width": side, "height": side})
        for _ in range(draw(st.integers(0, 8))):
            corner = generator.uniform(0, 100, 2)
            box = [*corner.tolist(), *generator.uniform(2, side - corner).tolist()]
            category = int(generator.choice(classes[:2]))
            crowd = bool(generator.random() < 0.2)
            mask = _mask(generator, box, side)
            form = "list" if crowd else generator.choice(["list", "compressed", "polygon"])
            segmentation = _polygon(box) if form == "polygon" else _lengths(mask, form)
            truth["annotations"].append({
                "id": len(truth["annotations"]) + 1, "image_id": image, "category_id": category, "bbox": box,
                "area": float(mask.sum()), "iscrowd": int(crowd), "segmentation": segmentation,
            })  # fmt: skip
            for _ in range(draw(st.integers(0, 3))):
                near = np.abs(np.array(box) + generator.normal(0, 5, 4)).round(2).tolist()
                results.append({
                    "image_id": image, "category_id": int(generator.choice([category] * 4 + classes)), "bbox": near,
                    "score": float(generator.integers(1, 10) / 10),
                    "segmentation": _lengths(_mask(generator, np.maximum(near, 1), side), "compressed"),
                })  # fmt: skip
    return truth, results


def _by_pycocotools(truth, results, kind, max_dets):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = copy.deepcopy(truth)
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(copy.deepcopy(results)), kind)
        evaluation.params.maxDets = [1, 10, max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = np.where(evaluation.stats == -1, np.nan, evaluation.stats)
    precision = evaluation.eval["precision"][..., 0, -1]
    # Its summary looks AP up at 100 detections, whatever is asked for.
    stats[0] = precision[precision > -1].mean() if (precision > -1).any() else np.nan
    return dict(zip(SIZES, stats[:6], strict=True)) | dict(zip(RECALLS, stats[8:], strict=True))


@settings(max_examples=60, deadline=None)
@given(problem=_problems(), max_dets=st.sampled_from([11, 100, 150]))
def test_scores_are_those_of_pycocotools(problem, max_dets):
    pytest.importorskip("pycocotools", reason="pycocotools, which these scores are compared with, is not installed")
    truth, results = problem
    before = copy.deepcopy(problem)
    ours = coco_scores(truth, results, ("bbox", "segm"), max_dets=max_dets)
    assert (truth, results) == before
    if not results:  # which pycocotools cannot load
        assert all(math.isnan(value) or value == 0 for value in ours.values())
        return
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        theirs = _by_pycocotools(truth, results_for(results, kind), kind, max_dets)
        for name, value in theirs.items():
            assert ours[prefix + name] == pytest.approx(value, abs=1e-9, nan_ok=True), prefix + name


@pytest.mark.parametrize(
    ("file", "kinds"),
    [
        ("bccd/instances_val", ["bbox"]),
        ("dsb2018-nuclei/instances_train", ["bbox", "segm"]),
        ("coco-mini/instances_val2017", ["bbox", "segm"]),
    ],
)
def test_the_ground_truth_itself_scores_one(file, kinds):
    if not SHARED.is_dir():
        pytest.skip(f"the real data are not at {SHARED}; set FREQFORMER_SHARED to the folder that holds data/")
    truth = json.loads((SHARED / f"{file}.json").read_text())
    results = [row | {"score": 1.0} for row in truth["annotations"] if not row["iscrowd"]]
    scores, classes = coco_report(truth, results, kinds, max_dets=200)
    assert {value for value in scores.values() if not math.isnan(value)} == {1.0}
    assert all(row["AP"] == 1 or row["instances"] == 0 for row in classes)
    if file.startswith("dsb"):  # one image has 101 nuclei, and COCO looks at 100
        assert 0.99 < coco_scores(truth, results, kinds)["AR"] < 1
