"""Runs on a miniature of VTAB-1k: their splits, and the whole image wherever the checkpoint goes."""

import json

import pytest

from freqformer import load_model
from freqformer.checkpoints import read_description, save_model
from freqformer.data import eval_transform, open_images
from freqformer.engine import run
from freqformer.tasks import model_transform

PLAIN = {"aa": "none", "reprob": 0, "mixup": 0, "cutmix": 0, "hflip": 0, "model_ema": False, "limit_train": None}


@pytest.fixture(scope="module")
def squashed(tiny, make_vtab, tmp_path_factory):
    """A run on train800 and val200 of long images, and the data."""
    root = tmp_path_factory.mktemp("vtab")
    make_vtab(root / "data", ["svhn"], size=(20, 60))
    changes = {"data_set": "svhn", "data_path": str(root / "data"), "resize": "squash", "epochs": 1, "batch_size": 8}
    splits = {"train_split": "train800", "val_split": "val200"}
    run(tiny(root / "run", **PLAIN, **changes, **splits))
    return root


def evaluated(command, path, root, *more):
    given = ["--data-set", "svhn", "--data-path", root / "data", "--num-workers", 0, "--precision", "32-true", *more]
    answer = command("eval", "--model-path", path, *given, "--accelerator", "cpu", "--json")
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def test_a_run_has_its_splits_and_evaluation_another(squashed, command):
    best = json.loads((squashed / "run/metrics.json").read_text())["best"]
    val = evaluated(command, squashed / "run", squashed, "--split", "val200")
    assert (val["images"], evaluated(command, squashed / "run", squashed)["images"]) == (4, 8)
    assert val["loss"] == pytest.approx(best["loss"], rel=1e-5)
    answer = command("eval", "--model-path", squashed / "run", "--data-set", "DIGITS", "--split", "train800")
    assert (answer.code, answer.err) == (
        2,
        "freqformer: unknown split 'train800': DIGITS has train, val, train80, train20\n",
    )


def test_evaluation_squashes_as_the_checkpoint_says(squashed, command, tmp_path):
    cfg = json.loads((squashed / "run/config.json").read_text())["pretrained_cfg"]
    assert (cfg["crop_mode"], cfg["crop_pct"]) == ("squash", 1.0)
    model = load_model(squashed / "run")
    image = open_images("svhn", squashed / "data", "test").load(0)
    whole = eval_transform((32, 32), mean=cfg["mean"], std=cfg["std"], crop_pct=1.0, crop_mode="squash")(image)
    assert model_transform(model)(image).equal(whole)

    # A checkpoint of before, without the field, is evaluated on the middle.
    description = read_description(squashed / "run")
    del description["pretrained_cfg"]["crop_mode"]
    save_model(tmp_path / "before", model.state_dict(), description)
    middle = eval_transform((32, 32), mean=cfg["mean"], std=cfg["std"], crop_pct=1.0)(image)
    assert model_transform(load_model(tmp_path / "before"))(image).equal(middle)
    assert not middle.equal(whole)


@pytest.mark.slow
def test_an_exported_file_squashes_too(squashed, command, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    answer = command("export", "--model-path", squashed / "run", tmp_path / "x.onnx")
    assert answer.code == 0, answer.err
    ours, theirs = (evaluated(command, path, squashed) for path in (squashed / "run", tmp_path / "x.onnx"))
    assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-4)
    predictions = [
        json.loads(
            command("predict", "--model-path", path, squashed / "data/svhn/images/test/000001.jpg", "--json").out
        )
        for path in (squashed / "run", tmp_path / "x.onnx")
    ]
    assert predictions[0]["probabilities"] == pytest.approx(predictions[1]["probabilities"], abs=1e-4)
