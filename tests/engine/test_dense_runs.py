"""Runs of detection and segmentation: what they leave, how they go on, and what they refuse."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("segmentation_models_pytorch", reason="the extra dense is not installed")
pytest.importorskip("faster_coco_eval", reason="the extra dense is not installed")

from freqformer.engine import RESUME_LAST, Interrupted, run
from freqformer.engine.callbacks import Record
from freqformer.errors import FreqFormerError
from freqformer.tasks.dense import DenseTask
from freqformer.tasks.detection import Detection, DetectionConfig
from freqformer.tasks.segmentation import Segmentation, SegmentationConfig

STEPS = 4  # of an epoch: 8 images in batches of 2


@pytest.fixture(scope="session")
def instances(make_instances, tmp_path_factory):
    """Eight training and five validation images; to be read only."""
    return make_instances(tmp_path_factory.mktemp("instances") / "data")


@pytest.fixture(scope="session")
def scenes(make_scenes, tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("scenes") / "data")


SHARED = {
    "arch": "test_gfnet_h",
    "epochs": 2,
    "batch_size": 2,
    "lr": 1e-3,
    "lr_base_batch": None,
    "drop_path": 0.3,
    "color_jitter": 0.4,
    "precision": "32-true",
    "accelerator": "cpu",
    "num_workers": 0,
}
DETECTION = {
    "detector": "maskrcnn",
    "fpn_channels": 8,
    "anchor_sizes": [8, 16, 24, 32, 48],
    "proposals": 20,
    "score_thr": 0.0,
    "input_size": (48, 80),
    "train_sizes": [32, 48],
    "scale_jitter": (0.5, 1.5),
    "vflip": 0.5,
}
SEGMENTATION = {
    "decoder_args": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 64},
    "input_size": (32, 48),
    "class_balance": 0.5,
}


@pytest.fixture(scope="session")
def detection(instances):
    """Settings of a run of detection of a few seconds in which everything random is on."""
    return lambda folder, **changes: DetectionConfig(
        **{**SHARED, **DETECTION, "data_path": str(instances), "output_dir": str(folder), **changes}
    )


@pytest.fixture(scope="session")
def segmentation(scenes):
    return lambda folder, **changes: SegmentationConfig(
        **{**SHARED, **SEGMENTATION, "data_path": str(scenes), "output_dir": str(folder), **changes}
    )


@pytest.fixture
def config_of(request):
    """The settings of either task."""
    return lambda kind: request.getfixturevalue(kind)


@pytest.fixture
def stop_at():
    """Let SIGTERM arrive in a given step of this process."""
    patch = pytest.MonkeyPatch()

    def arm(step, hook="loss"):
        calls = iter(range(10**6))
        for kind in (Detection, Segmentation):
            original = getattr(kind, hook)

            def hooked(self, *arguments, original=original):
                if next(calls) == step:
                    os.kill(os.getpid(), signal.SIGTERM)
                return original(self, *arguments)

            patch.setattr(kind, hook, hooked)
        return patch.undo

    yield arm
    patch.undo()


def stop_and_resume(config, folder, stop_at, step, hook="loss", **changes):
    disarm = stop_at(step, hook)
    try:
        with pytest.raises(Interrupted):
            run(config(folder, **changes))
    finally:
        disarm()
    return run(config(folder, resume=RESUME_LAST, **changes))


def strictly(text):
    """JSON as every parser reads it: NaN is none."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def metrics_of(folder):
    return strictly((folder / "metrics.json").read_text())


def differing(folder, other, left_behind):
    ours, theirs = left_behind(folder), left_behind(other)
    return [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]


# What a run leaves

ALWAYS = ("config.yaml", "metrics.json", "curves.png", "best.png", "worst.png", "per_class.png", "per_class.csv")
ALWAYS = (
    *ALWAYS,
    "report.html",
    "environment.json",
    "examples.csv",
    "filters.png",
    "model.safetensors",
    "config.json",
    "checkpoints/last.ckpt",
    "checkpoints/best.ckpt",
)


@pytest.fixture(scope="session")
def whole(detection, segmentation, tmp_path_factory):
    """A run of each task that nothing disturbed; to be read only."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind) / "run"
            run({"detection": detection, "segmentation": segmentation}[kind](folder))
            made[kind] = folder
        return made[kind]

    return get


def assert_complete(folder, results=()):
    for name in (*ALWAYS, *results):
        assert (folder / name).stat().st_size > 0, name
    for name in ("curves.png", "best.png", "worst.png", "per_class.png", "filters.png"):
        with Image.open(folder / name) as picture:
            picture.load()
    metrics = metrics_of(folder)
    strictly((folder / "config.json").read_text())
    assert len(metrics["epochs"]) == 2
    return metrics


def test_a_run_of_mask_r_cnn_leaves_everything(whole):
    folder = whole("detection")
    metrics = assert_complete(folder, ("results.bbox.json", "results.segm.json"))
    for name in ("AP", "AP50", "AP75", "APs", "AR", "mask_AP", "mask_AP50"):
        assert metrics["best"][name] is not None
    assert metrics["best"]["images"] == 5
    assert all("val/mask_AP" in row and np.isfinite(row["train/loss"]) for row in metrics["epochs"])
    with (folder / "per_class.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["box", "disc"]
    boxes = strictly((folder / "results.bbox.json").read_text())
    masks = strictly((folder / "results.segm.json").read_text())
    assert {row["image_id"] for row in boxes} <= set(range(10, 15))
    assert {row["category_id"] for row in boxes} <= {3, 7}
    assert len(boxes) == len(masks) > 0
    assert "segmentation" in masks[0]


def test_a_run_of_segmentation_leaves_everything(whole):
    folder = whole("segmentation")
    metrics = assert_complete(folder)
    assert {"mIoU", "accuracy", "mean_accuracy", "loss", "images"} <= metrics["best"].keys()
    with (folder / "per_class.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["ground", "box", "disc"]


@pytest.mark.parametrize("detector", ["retinanet", "fasterrcnn"])
def test_a_run_of_a_detector_of_boxes_leaves_everything(detection, tmp_path, detector):
    run(detection(tmp_path / "run", detector=detector, head_norm="group"))
    metrics = assert_complete(tmp_path / "run", ("results.bbox.json",))
    assert "AP" in metrics["best"]
    assert not (tmp_path / "run/results.segm.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["retinanet", "maskrcnn"])
def test_a_backbone_with_one_grid_is_trained_too(detection, tmp_path, detector):
    run(detection(tmp_path / "run", arch="test_gfnet", detector=detector, precision="bf16-mixed"))
    assert_complete(tmp_path / "run", ("results.bbox.json",))


@pytest.mark.slow
def test_a_segmenter_on_one_grid_is_trained_too(segmentation, tmp_path):
    changes = {"arch": "test_gfnet", "pyramid_channels": 16, "test_mode": "slide", "precision": "bf16-mixed"}
    run(segmentation(tmp_path / "run", **changes))
    assert_complete(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_the_config_replays_the_run(command, whole, tmp_path, left_behind, kind):
    name = {"detection": "detect", "segmentation": "segment"}[kind]
    words = [name, "train", "--config", whole(kind) / "config.yaml", "--work-dir", tmp_path / "again"]
    answer = command(*words)
    assert answer.code == 0, answer.err
    assert "best epoch: " in answer.out
    assert differing(tmp_path / "again", whole(kind), left_behind) == []


# Going on

MOMENTS = [(STEPS + 1, "loss"), (STEPS - 1, "loss"), (1, "validation_step")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["detection", "segmentation"])
@pytest.mark.parametrize(("step", "hook"), MOMENTS)
def test_a_signal_and_resume_change_no_bit(config_of, whole, tmp_path, stop_at, left_behind, kind, step, hook):
    # The whole run loads in its own process.
    stop_and_resume(config_of(kind), tmp_path / "run", stop_at, step, hook, num_workers=2)
    assert differing(tmp_path / "run", whole(kind), left_behind) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_everything_at_once_and_resume_change_no_bit(config_of, tmp_path, stop_at, left_behind, kind):
    changes = {
        "epochs": 3,
        "model_ema": True,
        "model_ema_decay": 0.5,
        "accumulate": 3,
        "eval_every": 2,
        "grad_checkpointing": True,
        "average_checkpoints": 2,
        "limit_train": 7,
    }
    metrics = run(config_of(kind)(tmp_path / "whole", **changes))
    assert ["val/" in " ".join(row) for row in metrics["epochs"]] == [False, True, True]
    assert {"best", "raw", "average"} <= metrics.keys()
    for name in ("model_raw.safetensors", "model_average.safetensors"):
        assert (tmp_path / "whole" / name).exists(), name
    # Seven images are three batches; the first stop is before any evaluation.
    stop_and_resume(config_of(kind), tmp_path / "run", stop_at, 1, **changes)
    assert differing(tmp_path / "run", tmp_path / "whole", left_behind) == []


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 3, 4])  # Of two an epoch: in the first, at the second's end, after it.
def test_a_run_stopped_before_its_first_evaluation_goes_on(segmentation, tmp_path, stop_at, left_behind, step):
    changes = {"eval_every": 3, "epochs": 4, "limit_train": 4}
    if not (tmp_path.parent / "whole-of-four").exists():
        run(segmentation(tmp_path.parent / "whole-of-four", **changes))
    disarm = stop_at(step)
    with pytest.raises(Interrupted):
        run(segmentation(tmp_path / "run", **changes))
    disarm()
    assert not (tmp_path / "run/model.safetensors").exists()
    metrics = run(segmentation(tmp_path / "run", resume=RESUME_LAST, **changes))
    evaluated = [row["epoch"] for row in metrics["epochs"] if "val/mIoU" in row]
    assert evaluated == [3, 4]
    assert differing(tmp_path / "run", tmp_path.parent / "whole-of-four", left_behind) == []


@pytest.mark.slow
def test_a_killed_run_goes_on(detection, whole, tmp_path, left_behind):
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "freqformer", "detect", "train"]
    first = ["--config", whole("detection") / "config.yaml", "--output-dir", folder, "--save-every-minutes", "1e-6"]
    with subprocess.Popen([*map(str, [*words, *first])], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 300
            while not (folder / "checkpoints/last.ckpt").exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    run(detection(folder, resume=RESUME_LAST, save_every_minutes=1e-6))
    assert differing(folder, whole("detection"), left_behind) == []


# Several processes

QUIET = {"drop_path": 0.0, "color_jitter": 0.0, "hflip": 0.0}


def losses_of(config, monkeypatch):
    seen = []
    with monkeypatch.context() as patch:
        original = Record.on_train_batch_end

        def hooked(self, trainer, *rest):
            seen.append(float(trainer.callback_metrics["train/loss"]))
            original(self, trainer, *rest)

        patch.setattr(Record, "on_train_batch_end", hooked)
        metrics = run(config)
    return seen, metrics


@pytest.mark.slow
def test_two_processes_segment_as_one(segmentation, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    quiet = {**QUIET, "scale": (1.0, 1.0), "max_share": 1.0, "class_balance": 0.0, "input_size": (64, 96)}
    quiet["decoder_args"] = {**SEGMENTATION["decoder_args"], "decoder_dropout": 0.0}
    # Crops of the whole images: a mean over processes is that over their pixels only where those are as many.
    one, figures = losses_of(segmentation(tmp_path / "one", **quiet), monkeypatch)
    two, others = losses_of(segmentation(tmp_path / "two", devices=2, **quiet, **{"batch_size": 1}), monkeypatch)
    assert two == pytest.approx(one, rel=0.05)
    assert others["best"]["images"] == figures["best"]["images"] == 5
    assert others["best"]["mIoU"] == pytest.approx(figures["best"]["mIoU"], abs=0.1)


@pytest.mark.slow
def test_two_processes_find_each_image_once(detection, make_instances, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Of one size, since images of a batch are padded in training.
    root = make_instances(tmp_path / "data", same=True)
    quiet = {**QUIET, "detector": "retinanet", "train_sizes": [48], "scale_jitter": None, "vflip": 0.0}
    quiet["data_path"] = str(root)
    one, figures = losses_of(detection(tmp_path / "one", **quiet), monkeypatch)
    two, others = losses_of(detection(tmp_path / "two", devices=2, **{**quiet, "batch_size": 1}), monkeypatch)
    assert len(two) == len(one) == 2 * STEPS
    # Lightning's mean of two images' losses is RetinaNet's own over a batch.
    assert two == pytest.approx(one, rel=1e-3)
    assert others["best"]["images"] == 5
    assert others["best"]["AP"] == pytest.approx(figures["best"]["AP"], abs=1e-3)
    rows = [json.loads((tmp_path / name / "results.bbox.json").read_text()) for name in ("one", "two")]
    found = [{row["image_id"]: 0 for row in every} for every in rows]
    assert set(found[0]) == set(found[1]) == set(range(10, 15))
    assert len(rows[0]) == len(rows[1])


# Bad inputs


@pytest.fixture
def own_instances(make_instances, tmp_path):
    """A data set in COCO's format that a test may spoil, and a way to change its annotations."""
    root = make_instances(tmp_path / "data")

    def change(split, edit):
        file = root / f"instances_{split}.json"
        content = json.loads(file.read_text())
        edit(content)
        file.write_text(json.dumps(content))

    return root, change


@pytest.mark.slow
def test_missing_images_are_listed_and_replaced(detection, own_instances, tmp_path, capfd):
    root, _ = own_instances
    (root / "train/3.jpg").unlink()
    (root / "val/1.jpg").write_bytes(b"no image")
    metrics = run(detection(tmp_path / "run", data_path=str(root), detector="retinanet"))
    with (tmp_path / "run/bad_images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(os.path.basename(row["image"]), row["split"]) for row in rows] == [("3.jpg", "train"), ("1.jpg", "val")]
    assert metrics["best"]["images"] == 4
    assert "skipped 2 images" in capfd.readouterr().out


def test_too_many_missing_images_stop_the_run(detection, own_instances, tmp_path):
    root, _ = own_instances
    for number in range(3):
        (root / f"train/{number}.jpg").unlink()
    with pytest.raises(FreqFormerError, match="more than --max-bad-images 1"):
        run(detection(tmp_path / "run", data_path=str(root), detector="retinanet", max_bad_images=1))


def test_no_image_at_all_is_refused_before_the_folder_is_made(detection, own_instances, tmp_path):
    root, _ = own_instances
    shutil.rmtree(root / "train")
    with pytest.raises(FreqFormerError, match="none of the listed images is there"):
        run(detection(tmp_path / "run", data_path=str(root)))
    assert not (tmp_path / "run").exists()


def spoil(content):
    """One of each thing that can be wrong with an annotation, on the first image."""
    sound = content["annotations"][0]
    wrong = [
        {"bbox": [5, 5, 0, 10]},
        {"bbox": [500, 500, 10, 10]},
        {"category_id": 99},
        {"image_id": 99},
        {"segmentation": {"size": [3, 3], "counts": [0, 9]}},
        {"segmentation": []},
    ]
    content["annotations"] += [{**sound, "id": 1000 + number, **change} for number, change in enumerate(wrong)]


def test_unusable_annotations_are_counted_and_said(detection, own_instances, tmp_path, capfd):
    root, change = own_instances
    change("train", spoil)
    change("val", spoil)
    metrics = run(detection(tmp_path / "run", data_path=str(root), epochs=1))
    out = capfd.readouterr().out
    assert metrics["data_problems"]["train"] == metrics["data_problems"]["val"]
    assert sum(metrics["data_problems"]["train"].values()) == 6
    for what, count in metrics["data_problems"]["train"].items():
        assert f"{count} {what}" in out


def no_annotations(content):
    content["annotations"] = []


def one_image_annotated(content):
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] == 10]


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["retinanet", "fasterrcnn", "maskrcnn"])
def test_batches_without_any_object_are_trained_on(detection, own_instances, tmp_path, detector):
    root, change = own_instances
    change("train", one_image_annotated)
    metrics = run(detection(tmp_path / "run", data_path=str(root), detector=detector, epochs=1))
    assert np.isfinite(metrics["epochs"][0]["train/loss"])
    assert metrics["data_problems"]["train"] == {"images without annotations (kept)": 7}


@pytest.mark.parametrize(("split", "purpose"), [("val", "evaluate"), ("train", "train")])
def test_a_split_without_any_object_is_refused(detection, own_instances, tmp_path, split, purpose):
    root, change = own_instances
    change(split, no_annotations)
    with pytest.raises(FreqFormerError, match=f"to {purpose} on have no object"):
        run(detection(tmp_path / "run", data_path=str(root)))
    assert not (tmp_path / "run").exists()


def test_validation_images_with_objects_that_cannot_be_read_end_the_run_in_one_line(detection, own_instances, tmp_path):
    root, change = own_instances
    change("val", one_image_annotated)
    (root / "val/0.jpg").write_bytes(b"no image")
    with pytest.raises(FreqFormerError, match="no object"):
        run(detection(tmp_path / "run", data_path=str(root), detector="retinanet", epochs=1))


def test_other_classes_in_validation_are_refused(detection, own_instances, tmp_path):
    root, change = own_instances

    def rename(content):
        content["categories"][0]["name"] = "pyramid"

    change("val", rename)
    with pytest.raises(FreqFormerError, match="'pyramid', which is not among"):
        run(detection(tmp_path / "run", data_path=str(root)))


def odd_pictures(content, folder):
    """Replace images by odd ones: one pixel, a line, grey, 16 bits, transparent, turned by EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    odd = {
        "one.png": Image.new("RGB", (1, 1)),
        "line.png": Image.new("RGB", (400, 2)),
        "grey.png": Image.new("L", (64, 48), 99),
        "deep.png": Image.fromarray(np.full((48, 64), 40_000, np.uint16)),
        "clear.png": Image.new("RGBA", (64, 48), (200, 10, 10, 40)),
        "turned.jpg": Image.new("RGB", (64, 48), (0, 200, 0)),
    }
    for number, (name, picture) in enumerate(odd.items()):
        picture.save(folder / name, **({"exif": exif} if name == "turned.jpg" else {}))
        width, height = picture.size[::-1] if name == "turned.jpg" else picture.size
        image = content["images"][number]
        for row in content["annotations"]:
            if row["image_id"] == image["id"]:
                right, below = width, height
                row["bbox"], row["area"] = [0, 0, right, below], right * below
                row["segmentation"] = [[0, 0, right, 0, right, below, 0, below]]
        image.update(file_name=name, width=width, height=height)


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["retinanet", "maskrcnn"])
def test_odd_images_are_trained_and_evaluated_on(detection, own_instances, tmp_path, detector):
    root, change = own_instances
    change("train", lambda content: odd_pictures(content, root / "train"))
    shutil.copy(root / "instances_train.json", root / "instances_val.json")
    shutil.rmtree(root / "val")
    shutil.copytree(root / "train", root / "val")
    metrics = run(detection(tmp_path / "run", data_path=str(root), detector=detector, epochs=1))
    assert metrics["best"]["images"] == 8
    assert metrics["best"]["bad_images"] == 0
    assert np.isfinite(metrics["epochs"][0]["train/loss"])


def test_odd_images_are_segmented(segmentation, make_scenes, tmp_path):
    root = make_scenes(tmp_path / "data")
    content = {"images": [{"id": number} for number in range(8)], "annotations": []}
    for split in ("train", "val"):
        odd_pictures(content, root / split / "images")
        for image in content["images"][:6]:
            mask = Image.new("L", (image["width"], image["height"]), 1)
            mask.save((root / split / "masks" / image["file_name"]).with_suffix(".png"))
    metrics = run(segmentation(tmp_path / "run", data_path=str(root), epochs=1))
    assert metrics["best"]["images"] == 11
    assert metrics["best"]["bad_images"] == 0


def test_unusable_masks_are_bad_images(segmentation, make_scenes, tmp_path):
    root = make_scenes(tmp_path / "data")
    Image.new("L", (9, 9)).save(root / "train/masks/0.png")
    Image.new("L", (72, 52), 77).save(root / "val/masks/1.png")
    Image.new("L", (80, 48), 255).save(root / "val/masks/2.png")  # No class at all is no mistake.
    metrics = run(segmentation(tmp_path / "run", data_path=str(root), epochs=1))
    with (tmp_path / "run/bad_images.csv").open() as file:
        reasons = {os.path.basename(row["image"]): row["reason"] for row in csv.DictReader(file)}
    assert reasons.keys() == {"0.jpg", "1.jpg"}
    assert "9x9 pixels" in reasons["0.jpg"]
    assert "value 77" in reasons["1.jpg"]
    assert metrics["best"]["images"] == 4


def test_masks_without_any_class_in_validation_end_the_run_in_one_line(segmentation, make_scenes, tmp_path):
    root = make_scenes(tmp_path / "data", val=1)
    Image.new("L", (64, 48), 255).save(root / "val/masks/0.png")
    with pytest.raises(FreqFormerError, match="no pixel"):
        run(segmentation(tmp_path / "run", data_path=str(root), epochs=1))


@pytest.mark.slow
def test_a_bad_mask_stays_one_line_of_the_list(segmentation, make_scenes, tmp_path, stop_at):
    root = make_scenes(tmp_path / "data")
    for number in range(4):
        Image.new("L", (9, 9)).save(root / f"train/masks/{number}.png")
    stop_and_resume(segmentation, tmp_path / "run", stop_at, STEPS + 1, data_path=str(root))
    with (tmp_path / "run/bad_images.csv").open() as file:
        names = [row["image"] for row in csv.DictReader(file)]
    assert len(names) == len(set(names))


# Settings

WRONG = [
    (["--input-size", "0"], "--input-size must be at least 1"),
    (["--input-size", "800", "600"], "--input-size must be at least 1, the longest side not below the shorter, not"),
    (["--detector", "yolo"], "--detector must be one of retinanet"),
    (["--score-thr", "2"], "--score-thr must be between 0 and 1"),
    (["--max-dets", "0"], "--max-dets must be at least 1"),
    (["--scale-jitter", "2", "1"], "--scale-jitter"),
    (["--color-jitter", "2"], "--color-jitter"),
    (["--layer-decay", "0.5"], "--layer-decay must be none"),
    (["--strategy", "fsdp"], "--strategy"),
    (["--eval-every", "0"], "--eval-every must be at least 1"),
    (["--anchor-sizes", "8", "16"], "anchor sizes"),
    (["--arch", "resnet_of_nowhere"], "resnet_of_nowhere"),
    (["--epoch", "3"], "did you mean --epochs?"),
    (["--limit-train", "0"], "--limit-train must be at least 1"),
]


@pytest.mark.parametrize(("flags", "said"), WRONG)
def test_wrong_settings_of_detection_are_one_line(refused, instances, tmp_path, flags, said):
    words = ["--accelerator", "cpu", "--arch", "test_gfnet_h", "--output-dir", tmp_path / "run"]
    assert said in refused("detect", "train", instances, *words, *flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--decoder", "yolo"], "--decoder must be one of fpn"),
        (["--test-mode", "half"], "--test-mode must be whole or slide"),
        (["--val-masks", "x"], "--val-masks must be given with --val-images"),
        (["--shorter-side", "0"], "--shorter-side must be at least 1"),
        (["--max-share", "0"], "--max-share"),
        (["--color-jitter", "-1"], "--color-jitter"),
        (["--input-size", "0"], "--input-size"),
        (["--scale", "2", "1"], "--scale must be"),
        (["--decoder-args.nonsense", "1"], "has no keyword 'nonsense'"),
    ],
)
def test_wrong_settings_of_segmentation_are_one_line(refused, scenes, tmp_path, flags, said):
    words = ["--accelerator", "cpu", "--arch", "test_gfnet_h", "--output-dir", tmp_path / "run"]
    assert said in refused("segment", "train", scenes, *words, *flags)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_written_over(whole, detection):
    with pytest.raises(FreqFormerError, match="--overwrite"):
        run(detection(whole("detection")))


def test_tasks_are_usable_alone(detection):
    task, train, val = detection("nowhere").build()
    assert isinstance(task, DenseTask)
    batch = train.collate([train[0, 0], train[0, 1]])
    task.log_dict = lambda figures: None
    loss = task.loss(batch)
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert "index" in val.collate([val[0]])


def test_balance_without_a_mask_that_can_be_read_is_one_line(segmentation, make_scenes, tmp_path):
    root = make_scenes(tmp_path / "data", train=2, val=1)
    for mask in (root / "train/masks").iterdir():
        mask.write_bytes(b"no picture")
    with pytest.raises(FreqFormerError, match=r"no mask of the training split can be read.*--class-balance 0"):
        run(segmentation(tmp_path / "run", data_path=str(root)))
    assert not (tmp_path / "run").exists()
