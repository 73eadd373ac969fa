"""`freqformer eval` and ``freqformer.evaluate``."""

import csv
import json
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import freqformer
from freqformer import FreqFormerError
from freqformer.data import open_images
from freqformer.engine import EvaluationConfig, evaluate, run
from freqformer.tasks import evaluation_samples

DIGITS = ["--data-set", "DIGITS", "--num-workers", 0, "--precision", "32-true", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def animals(tiny, tmp_path_factory):
    """A run on three class folders that are told apart by colour, and the folders."""
    root = tmp_path_factory.mktemp("animals")
    for split, count in (("train", 16), ("val", 5)):
        for target, label in enumerate(("cat", "dog", "owl")):
            folder = root / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng([target, i, count]).integers(0, 60, (32, 32, 3))
                pixels[..., target] += 190
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    plain = {"aa": "none", "reprob": 0, "mixup": 0, "cutmix": 0, "drop_path": 0.0, "drop": 0.0, "model_ema": False}
    changes = {"data_set": "FOLDER", "data_path": str(root / "data"), "limit_train": None, "batch_size": 8}
    run(tiny(root / "run", epochs=6, **plain, **changes))
    return root


def test_json_is_one_object_with_every_figure(command, finished):
    answer = command("eval", "--model-path", finished, *DIGITS, "--json")
    assert answer.code == 0, answer.err
    figures = json.loads(answer.out)
    assert {"top1", "top5", "loss", "images", "images_per_second"} <= figures.keys()
    best = json.loads((finished / "metrics.json").read_text())["best"]
    assert figures["images"] == 355
    for name in ("top1", "top5", "loss"):
        assert figures[name] == pytest.approx(best[name], rel=1e-5)


def test_the_line_for_people_has_the_same_figures(command, finished):
    figures = json.loads(command("eval", "--model-path", finished, *DIGITS, "--json").out)
    answer = command("eval", "--model-path", finished, *DIGITS)
    assert answer.code == 0
    assert answer.out.count("\n") == 1
    assert f"top1 {100 * figures['top1']:.2f}%" in answer.out
    assert "355 images" in answer.out


def test_the_figures_are_those_of_the_logits(finished):
    model = freqformer.load_model(finished)
    samples = evaluation_samples(model, open_images("DIGITS", None, "val"))
    images = torch.stack([samples[i]["image"] for i in range(len(samples))])
    targets = torch.tensor([samples[i]["target"] for i in range(len(samples))])
    with torch.no_grad():
        logits = model(images)
    figures = evaluate(EvaluationConfig(str(finished), data_set="DIGITS", num_workers=0, precision="32-true"))
    assert figures["top1"] == pytest.approx((logits.argmax(1) == targets).float().mean().item(), abs=1e-6)
    top5 = (logits.topk(5).indices == targets[:, None]).any(1).float().mean().item()
    assert figures["top5"] == pytest.approx(top5, abs=1e-6)
    assert figures["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-4)


@pytest.mark.parametrize("changes", [{"batch_size": 1000}, {"batch_size": 7}, {"num_workers": 2}])
def test_batches_and_workers_do_not_change_the_figures(finished, changes):
    settings = {"data_set": "DIGITS", "num_workers": 0, "precision": "32-true", "accelerator": "cpu"}
    expected = evaluate(EvaluationConfig(str(finished), **settings))
    figures = evaluate(EvaluationConfig(str(finished), **{**settings, **changes}))
    for name in ("top1", "top5", "images"):
        assert figures[name] == expected[name]
    assert figures["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("form", ["ckpt", "safetensors", "alone.safetensors", "bare.safetensors", "pth", "wrapped.pth"])
def test_every_form_of_the_weights_gives_the_same_figures(command, finished, tmp_path, form):
    expected = json.loads(command("eval", "--model-path", finished, *DIGITS, "--json").out)
    weights = load_file(finished / "model.safetensors")
    path, arch = tmp_path / f"x.{form}", []
    if form == "ckpt":
        path = finished / "checkpoints" / "best.ckpt"
    elif form == "safetensors":
        path = finished / "model.safetensors"
    elif form == "alone.safetensors":
        shutil.copy(finished / "model.safetensors", path)
    else:
        # Bare weights say neither which model they are nor at what crop it was evaluated.
        arch = ["--arch", "test-freqformer", "--crop-pct", 1.0]
        if form == "bare.safetensors":
            save_file(weights, path)
        else:
            torch.save({"model": weights, "epoch": 3} if form.startswith("wrapped") else weights, path)
    answer = command("eval", "--model-path", path, *DIGITS, *arch, "--json")
    assert answer.code == 0, answer.err
    figures = json.loads(answer.out)
    for name in ("top1", "top5", "loss", "images"):
        assert figures[name] == pytest.approx(expected[name], rel=1e-6)


def test_arch_is_needed_for_bare_weights_alone(refused, command, finished, tmp_path):
    torch.save(load_file(finished / "model.safetensors"), tmp_path / "bare.pth")
    assert "--arch" in refused("eval", "--model-path", tmp_path / "bare.pth", *DIGITS)
    assert command("eval", "--model-path", finished, *DIGITS, "--arch", "test_freqformer").code == 0
    line = refused("eval", "--model-path", finished, *DIGITS, "--arch", "test_gfnet")
    assert "test_freqformer" in line


def test_only_the_validation_folder_is_needed(command, animals, tmp_path):
    shutil.copytree(animals / "data" / "val", tmp_path / "data" / "val")
    flags = ["--data-set", "FOLDER", "--num-workers", 0, "--accelerator", "cpu", "--json"]
    whole = json.loads(command("eval", "--model-path", animals / "run", "--data-path", animals / "data", *flags).out)
    answer = command("eval", "--model-path", animals / "run", "--data-path", tmp_path / "data", *flags)
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["top1"] == whole["top1"]
    assert json.loads(answer.out)["images"] == 15


def test_per_class_writes_names_counts_and_accuracies(command, animals, tmp_path):
    flags = ["--data-set", "FOLDER", "--data-path", animals / "data", "--num-workers", 0, "--json"]
    table = tmp_path / "classes.csv"
    answer = command("eval", "--model-path", animals / "run", *flags, "--per-class", table)
    assert answer.code == 0, answer.err
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["class"] for row in rows] == ["cat", "dog", "owl"]
    assert [int(row["images"]) for row in rows] == [5, 5, 5]
    mean = sum(float(row["accuracy"]) for row in rows) / 3
    assert mean == pytest.approx(json.loads(answer.out)["top1"], abs=1e-6)


def test_some_of_the_classes_are_matched_by_name(command, animals, tmp_path):
    # With the classes numbered by their order, dogs and owls would be counted as cats and dogs.
    flags = ["--data-set", "FOLDER", "--num-workers", 0, "--json"]
    table = tmp_path / "classes.csv"
    command("eval", "--model-path", animals / "run", "--data-path", animals / "data", *flags, "--per-class", table)
    whole = {row["class"]: row for row in csv.DictReader(table.read_text().splitlines())}
    assert float(whole["owl"]["accuracy"]) > 0.7, "this test needs a model that has learnt its classes"
    for label in ("dog", "owl"):
        shutil.copytree(animals / "data" / "val" / label, tmp_path / "data" / "val" / label)
    data = ["--data-path", tmp_path / "data"]
    answer = command("eval", "--model-path", animals / "run", *data, *flags, "--per-class", table)
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["images"] == 10
    part = {row["class"]: row for row in csv.DictReader(table.read_text().splitlines())}
    assert part["cat"]["images"] == "0"
    assert part["cat"]["accuracy"] == ""
    assert part["dog"] == whole["dog"]
    assert part["owl"] == whole["owl"]


def test_another_number_of_classes_is_refused(refused, finished, animals):
    flags = ["--data-set", "FOLDER", "--data-path", animals / "data", "--num-workers", 0]
    line = refused("eval", "--model-path", finished, *flags)
    assert "3 classes" in line
    assert "10" in line
    assert "class-count" in refused("eval", "--model-path", animals / "run", *DIGITS)


def test_another_number_of_classes_is_refused_for_bare_weights(refused, finished, animals, tmp_path):
    torch.save(load_file(finished / "model.safetensors"), tmp_path / "bare.pth")
    flags = ["--data-set", "FOLDER", "--data-path", animals / "data", "--num-workers", 0, "--arch", "test_freqformer"]
    assert "class-count" in refused("eval", "--model-path", tmp_path / "bare.pth", *flags)


@pytest.mark.parametrize("size", ["48", "[32, 64]"])
def test_another_input_size_is_evaluated_or_refused_in_one_line(command, finished, size):
    answer = command("eval", "--model-path", finished, *DIGITS, "--input-size", size, "--json")
    assert answer.code in (0, 2), answer
    if answer.code == 2:
        assert answer.err.count("\n") == 1
        assert "size" in answer.err
    else:
        assert json.loads(answer.out)["images"] == 355


WRONG = [
    (["--data-set", "DIGIT"], "DIGITS"),
    (["--data-set", "FOLDER"], "--data-path"),
    (["--crop-pct", 0], "crop"),
    (["--crop-pct", 1.2], "crop"),
    (["--input-size", 0], "size"),
    (["--interpolation", "nosuch"], "nosuch"),
    (["--precision", "nosuch"], "nosuch"),
    (["--accelerator", "nosuch"], "nosuch"),
    (["--batch-size", 0], "batch"),
    (["--num-workers", -1], "workers"),
    (["--per-class", "nowhere/x.csv"], "nowhere"),
    (["--model_path", "nowhere"], "nowhere"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG, ids=[str(wrong) for wrong, _ in WRONG])
def test_a_wrong_setting_is_one_line(refused, finished, wrong, said):
    assert said in refused("eval", "--model-path", finished, *DIGITS, *wrong)


def test_a_damaged_config_is_one_line(refused, finished, tmp_path):
    save_file(load_file(finished / "model.safetensors"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    assert "config.json" in refused("eval", "--model-path", tmp_path, *DIGITS)


def test_ctrl_c_exits_with_130_and_one_line(command, finished, signal_at):
    signal_at(1, signal.SIGINT, "validation_step")
    answer = command("eval", "--model-path", finished, *DIGITS)
    assert answer.code == 130
    assert answer.err.count("\n") == 1


def test_python_evaluate_raises_one_line(finished):
    with pytest.raises(FreqFormerError) as error:
        evaluate(EvaluationConfig(str(finished), data_set="NOSUCH"))
    assert "\n" not in str(error.value)
