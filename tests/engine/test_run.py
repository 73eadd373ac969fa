"""The run's folder, what it holds, and what a run refuses."""

import csv
import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from timm.scheduler import create_scheduler_v2

import freqformer
from freqformer import FreqFormerError
from freqformer.data import open_images
from freqformer.engine import EvaluationConfig, evaluate, run, validate
from freqformer.engine.datamodule import evaluation_loader
from freqformer.tasks import Classification, ClassificationConfig, evaluation_samples

# What a finished run leaves


def test_the_config_is_the_resolved_settings(tiny, finished):
    kept = yaml.safe_load((finished / "config.yaml").read_text())
    assert kept == {**yaml.safe_load(yaml.safe_dump(vars(tiny(finished)))), "output_dir": str(finished)}


def test_the_metrics_are_json_with_every_epoch_and_the_best(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert [row["epoch"] for row in metrics["epochs"]] == [1, 2, 3]
    for row in metrics["epochs"]:
        assert {"train/loss", "val/loss", "val/top1", "val/top5", "lr", "seconds"} <= row.keys()
        assert 0 <= row["val/top1"] <= row["val/top5"] <= 1
    assert metrics["best"]["images"] == 355
    assert metrics["best"]["top1"] == pytest.approx(max(row["val/top1"] for row in metrics["epochs"]), abs=1e-6)


def test_run_returns_what_it_writes(tiny, tmp_path):
    metrics = run(tiny(tmp_path / "run", epochs=1))
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_the_training_loss_is_the_mean_of_the_steps(tiny, tmp_path, monkeypatch):
    losses = []
    original = Classification.training_step

    def hooked(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(Classification, "training_step", hooked)
    metrics = run(tiny(tmp_path / "run", epochs=2))
    assert len(losses) == 12
    assert metrics["epochs"][0]["train/loss"] == pytest.approx(sum(losses[:6]) / 6, rel=1e-5)
    assert metrics["epochs"][1]["train/loss"] == pytest.approx(sum(losses[6:]) / 6, rel=1e-5)


def test_the_logs_are_csv_and_tensorboard(finished):
    (table,) = finished.rglob("logs/*/metrics.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    logged = [float(row["val/top1"]) for row in rows if row.get("val/top1")]
    written = [row["val/top1"] for row in json.loads((finished / "metrics.json").read_text())["epochs"]]
    assert logged == pytest.approx(written, abs=1e-6)
    (events,) = finished.rglob("logs/*/events.out.tfevents.*")
    assert events.stat().st_size > 0


@pytest.mark.parametrize("name", ["curves.png", "confusion.png"])
def test_the_pictures_open_and_are_not_blank(finished, name):
    with Image.open(finished / name) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 100
        assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 5


def test_no_confusion_matrix_of_more_than_a_hundred_classes(tiny, tmp_path):
    for split in ("train", "val"):
        for label in range(101):
            folder = tmp_path / "data" / split / f"{label:03d}"
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), (label * 2, 9, 9)).save(folder / "0.png")
    changes = {"data_set": "FOLDER", "data_path": str(tmp_path / "data"), "limit_train": None, "epochs": 1}
    run(tiny(tmp_path / "run", batch_size=50, **changes))
    assert (tmp_path / "run" / "curves.png").exists()
    assert not (tmp_path / "run" / "confusion.png").exists()


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoints_hold_nothing_but_tensors_and_plain_values(finished, name):
    checkpoint = torch.load(finished / "checkpoints" / f"{name}.ckpt", weights_only=True)
    assert checkpoint["state_dict"]


def test_the_folder_holds_what_is_documented_and_no_leftovers(finished):
    assert {path.name for path in finished.iterdir()} == {
        "config.yaml",
        "metrics.json",
        "logs",
        "curves.png",
        "confusion.png",
        "confusions.csv",
        "checkpoints",
        "model.safetensors",
        "model_raw.safetensors",
        "config.json",
        "report.html",
        "environment.json",
        "best.png",
        "worst.png",
        "examples.csv",
        "per_class.csv",
        "filters.png",
    }
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_timm_and_load_model_read_the_folder_alike(finished):
    ours = freqformer.load_model(finished)
    theirs = timm.create_model(f"local-dir:{finished}", pretrained=True).eval()
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(image), theirs(image))
    assert theirs.num_classes == 10
    assert theirs.pretrained_cfg["label_names"] == [str(digit) for digit in range(10)]
    assert tuple(theirs.pretrained_cfg["mean"]) == tuple(ours.pretrained_cfg["mean"])


def test_timm_reads_a_model_of_other_size_and_arguments(tiny, tmp_path):
    arguments = {"depth": 3, "spectral_depth": 1, "embed_dim": 48, "patch_size": 4}
    run(tiny(tmp_path / "run", epochs=1, input_size=(16, 24), model_args=arguments, crop_pct=0.9))
    theirs = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).eval()
    ours = freqformer.load_model(tmp_path / "run")
    image = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(image), theirs(image))
    assert theirs.pretrained_cfg["crop_pct"] == 0.9
    assert tuple(theirs.pretrained_cfg["input_size"]) == (3, 16, 24)


@pytest.mark.parametrize("ema", [False, True])
def test_the_exported_model_is_the_best_epoch(tiny, tmp_path, monkeypatch, ema):
    # A rate that rises to ruin: the best epoch is not the last one.
    folder = tmp_path / "run"
    changes = {"epochs": 4, "limit_train": 480, "lr": 1e-2, "min_lr": 3.0, "warmup_epochs": 0, "clip_grad": None}
    metrics = run(tiny(folder, **changes, aa="none", reprob=0, mixup=0, cutmix=0, model_ema=ema, model_ema_decay=0.5))
    scores = [row["val/top1"] for row in metrics["epochs"]]
    best = scores.index(max(scores))
    assert best < 3, "this test needs a run whose last epoch is not its best"
    figures = evaluate(config_of(folder))
    assert figures["top1"] == pytest.approx(scores[best], abs=1e-6)
    assert figures["loss"] == pytest.approx(metrics["epochs"][best]["val/loss"], rel=1e-5)
    assert metrics["best"]["top1"] == pytest.approx(scores[best], abs=1e-6)
    kept = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in load_file(folder / "model.safetensors").items():
        assert torch.equal(value, kept[f"model.{name}"])


def config_of(folder):
    return EvaluationConfig(str(folder), data_set="DIGITS", num_workers=0, precision="32-true", accelerator="cpu")


def test_the_average_is_what_is_evaluated_and_exported(finished):
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    trained = checkpoint["current_model_state"]
    averaged = checkpoint["state_dict"]
    assert not torch.equal(trained["model.head.weight"], averaged["model.head.weight"])
    last = json.loads((finished / "metrics.json").read_text())["epochs"][-1]
    model = freqformer.load_model(finished)
    model.load_state_dict({key.removeprefix("model."): value for key, value in averaged.items() if "model." in key})
    loader = evaluation_loader(evaluation_samples(model, open_images("DIGITS", None, "val")), 16, 0)
    figures = validate(Classification(ClassificationConfig(), model=model), loader, "32-true", "cpu")
    assert figures["loss"] == pytest.approx(last["val/loss"], rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_a_run_learns_in_either_precision(tiny, tmp_path, precision):
    plain = {"aa": "none", "reprob": 0, "mixup": 0, "cutmix": 0, "drop_path": 0.0, "drop": 0.0, "model_ema": False}
    changes = {"limit_train": None, "epochs": 4, "batch_size": 32, "hflip": 0, "lr": 5e-3, "precision": precision}
    metrics = run(tiny(tmp_path / "run", **plain, **changes))
    # Chance is 10%.
    assert metrics["best"]["top1"] > 0.25
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_fine_tuning_starts_from_the_weights(tiny, finished, tmp_path):
    metrics = run(tiny(tmp_path / "run", epochs=1, lr=0.0, min_lr=0.0, warmup_lr=0.0, finetune=str(finished)))
    before, after = load_file(finished / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    for name in before:
        torch.testing.assert_close(after[name], before[name])
    assert metrics["best"]["top1"] == pytest.approx(
        json.loads((finished / "metrics.json").read_text())["best"]["top1"], abs=1e-6
    )


def test_fine_tuning_on_other_classes_and_size_keeps_the_backbone(tiny, finished, class_folders, tmp_path):
    changes = {"data_set": "FOLDER", "data_path": str(class_folders()), "limit_train": None, "batch_size": 4}
    frozen = {"lr": 0.0, "min_lr": 0.0, "warmup_lr": 0.0, "epochs": 1}
    run(tiny(tmp_path / "run", finetune=str(finished), input_size=64, **changes, **frozen))
    before, after = load_file(finished / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    torch.testing.assert_close(after["stem.proj.weight"], before["stem.proj.weight"])
    assert after["head.weight"].shape[0] == 3
    assert after["pos_embed"].shape != before["pos_embed"].shape


def test_the_schedule_warms_up_and_ends_low(tiny, tmp_path):
    metrics = run(tiny(tmp_path / "run", epochs=5, lr=1e-3, warmup_lr=1e-6, min_lr=1e-5, warmup_epochs=1))
    rates = [row["lr"] for row in metrics["epochs"]]
    assert rates[0] == pytest.approx(1e-3, rel=0.2)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(1e-5, rel=0.5)


def test_the_rate_scales_with_the_batch(tiny):
    assert tiny("x", lr=5e-4, lr_base_batch=512, batch_size=128).scaled_lr() == pytest.approx(1.25e-4)
    assert tiny("x", lr=5e-4, lr_base_batch=512, batch_size=128).scaled_lr(4) == pytest.approx(5e-4)
    assert tiny("x", lr=5e-4, lr_base_batch=None, batch_size=128).scaled_lr(4) == 5e-4


def test_without_output_dir_the_run_lies_under_runs(command, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = words("x")
    place = flags.index("--output-dir")
    assert command(*flags[:place], *flags[place + 2 :]).code == 0
    assert (tmp_path / "runs" / "test_freqformer-digits" / "model.safetensors").exists()


def test_an_epoch_prints_its_figures_and_the_end_the_best(command, words, tmp_path):
    answer = command(*words(tmp_path / "run", "--epochs", 2))
    assert answer.code == 0
    assert answer.err == ""
    lines = answer.out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == ["1/2", "2/2"]
    assert lines[-1].startswith("best epoch: top1 ")


# Whose folder it is


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def holding(finished, tmp_path):
    """A folder that holds a finished run and something of the user's."""
    folder = tmp_path / "holding"
    shutil.copytree(finished, folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "mine").mkdir()
    (folder / "mine" / "config.yaml").write_text("mine")
    return folder


def test_a_folder_with_another_run_is_refused_and_untouched(refused, words, holding):
    before = files_in(holding)
    line = refused(*words(holding))
    assert "--overwrite" in line
    assert "--resume" in line
    assert files_in(holding) == before


def test_overwrite_replaces_the_run_and_nothing_else(command, words, holding):
    assert command(*words(holding, "--overwrite")).code == 0
    assert (holding / "notes.txt").read_text() == "mine"
    assert (holding / "mine" / "config.yaml").read_text() == "mine"
    assert len(json.loads((holding / "metrics.json").read_text())["epochs"]) == 1
    assert len(list(holding.glob("logs/*"))) == 1


def test_a_folder_without_a_run_may_hold_files(command, words, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert command(*words(tmp_path / "run")).code == 0
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_sweeping_leftovers_spares_the_users_files(command, words, tmp_path):
    folder = tmp_path / "run"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / ".draft.tmp").write_text("mine")
    assert command(*words(folder)).code == 0
    assert (folder / "mine" / ".draft.tmp").exists()


# Each wrong setting in one line, before anything is replaced

WRONG = [
    (["--opt", "nosuch"], "nosuch"),
    (["--sched", "nosuch"], "nosuch"),
    (["--precision", "nosuch"], "nosuch"),
    (["--accelerator", "nosuch"], "nosuch"),
    (["--arch", "gfnet-xss"], "gfnet_xs"),
    (["--data-set", "DIGIT"], "DIGITS"),
    (["--data-set", "FOLDER"], "--data-path"),
    (["--data-set", "FOLDER", "--data-path", "nowhere"], "nowhere"),
    (["--batch-size", "33"], "--batch-size"),
    (["--batch-size", "0"], "--batch-size"),
    (["--batch-size", "-4"], "--batch-size"),
    (["--epochs", "0"], "--epochs"),
    (["--epochs", "-1"], "--epochs"),
    (["--mixup", "-1"], "--mixup"),
    (["--cutmix", "-0.5"], "--cutmix"),
    (["--crop-pct", "0"], "crop"),
    (["--crop-pct", "1.5"], "crop"),
    (["--crop-padding", "-1"], "--crop-padding"),
    (["--num-workers", "-1"], "workers"),
    (["--limit-train", "0"], "at least 1"),
    (["--lr", "-1"], "--lr"),
    (["--lr-base-batch", "0"], "lr-base-batch"),
    (["--input-size", "0"], "size"),
    (["--input-size=-32"], "size"),
    (["--drop", "2"], "drop"),
    (["--drop-path", "2"], "drop"),
    (["--smoothing", "2"], "smoothing"),
    (["--reprob", "2"], "--reprob"),
    (["--hflip", "-1"], "flip"),
    (["--aa", "nosuch"], "nosuch"),
    (["--interpolation", "nosuch"], "nosuch"),
    (["--model-args.nosuch", "3"], "nosuch"),
    (["--finetune", "nowhere.pth"], "nowhere.pth"),
    (["--epochs", "many"], "--epochs"),
    (["--lr", "fast"], "--lr"),
    (["--model-ema", "maybe"], "--model-ema"),
    (["--input-size", "large"], "--input-size"),
    (["--epoch", "3"], "--epochs"),
    (["--config", "nowhere.yaml"], "nowhere.yaml"),
    (["surplus"], "surplus"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG, ids=[" ".join(wrong) for wrong, _ in WRONG])
def test_a_wrong_setting_is_refused_and_costs_no_run(refused, words, holding, wrong, said):
    before = files_in(holding)
    line = refused(*words(holding, "--overwrite", *wrong))
    assert said in line
    assert files_in(holding) == before


@pytest.mark.parametrize(
    "wrong", [["--opt", "nosuch"], ["--batch-size", "33"], ["--precision", "nosuch"], ["--num-workers", "-1"]]
)
def test_after_a_refusal_the_corrected_command_runs(command, words, tmp_path, wrong):
    assert command(*words(tmp_path / "run", *wrong)).code != 0
    answer = command(*words(tmp_path / "run"))
    assert answer.code == 0, answer.err


@pytest.mark.parametrize("wrong", [["--opt", "adamww"], ["--lr", "-1"], ["--opt", "sgd", "--momentum", "-3"]])
def test_a_wrong_number_is_not_called_a_wrong_optimiser(refused, words, tmp_path, wrong):
    line = refused(*words(tmp_path / "run", *wrong))
    assert ("optimiser" in line) == (wrong[1] == "adamww")


def test_the_schedules_that_are_suggested_exist(refused, words, tmp_path):
    line = refused(*words(tmp_path / "run", "--sched", "nosuch"))
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1.0)
    for name in line.rpartition("choose one of ")[2].strip().split(", "):
        create_scheduler_v2(optimizer, sched=name, num_epochs=2)


def test_debug_shows_the_traceback(command, words, tmp_path):
    answer = command(*words(tmp_path / "run", "--epochs", "0", "--debug"))
    assert answer.code == 2
    assert "Traceback" in answer.err
    assert answer.err.splitlines()[-1].startswith("freqformer: --epochs must be at least 1")


def test_the_output_folder_is_a_file(refused, words, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "not a folder" in refused(*words(tmp_path / "file"))
    assert "not a folder" in refused(*words(tmp_path / "file" / "below"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder(refused, words, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    assert "cannot" in refused(*words(tmp_path / "locked" / "run"))
    assert "cannot" in refused(*words(tmp_path / "locked"))


def test_a_folder_that_refuses_writing(refused, words, tmp_path, monkeypatch):
    """The same for root, to whom no folder is read-only."""
    original = Path.mkdir

    def mkdir(self, *args, **kwargs):
        if self.name == "run":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert os.strerror(errno.EACCES) in refused(*words(tmp_path / "run"))


def test_too_little_disk_is_refused_before_the_first_epoch(refused, words, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "not enough disk" in refused(*words(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_too_little_disk_does_not_cost_the_run_that_was_to_be_replaced(refused, words, holding, monkeypatch):
    before = files_in(holding)
    usage = shutil.disk_usage(holding)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(*words(holding, "--overwrite"))
    assert files_in(holding) == before


# Data that cannot be used


def test_a_data_folder_without_images(refused, words, tmp_path):
    (tmp_path / "empty").mkdir()
    flags = ["--data-set", "FOLDER", "--data-path", tmp_path / "empty"]
    assert "train" in refused(*words(tmp_path / "run", *flags))
    (tmp_path / "empty" / "train" / "cat").mkdir(parents=True)
    assert "cat" in refused(*words(tmp_path / "run", *flags))


def test_training_and_validation_classes_must_agree(refused, words, class_folders, tmp_path):
    root = class_folders()
    (root / "val" / "owl").rename(root / "val" / "eel")
    flags = ["--data-set", "FOLDER", "--data-path", root, "--batch-size", 4]
    assert "eel" in refused(*words(tmp_path / "run", *flags))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture(params=["missing", "truncated", "malicious", "text", "empty", "no weights"])
def bad_checkpoint(request, tmp_path, finished):
    path = tmp_path / f"{request.param}.ckpt"
    if request.param == "truncated":
        whole = (finished / "checkpoints" / "last.ckpt").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif request.param == "malicious":
        torch.save({"state_dict": {"x": Malicious(str(tmp_path / "pwned"))}}, path)
    elif request.param == "text":
        path.write_text("hello")
    elif request.param == "empty":
        path.touch()
    elif request.param == "no weights":
        torch.save({"epoch": 3}, path)
    yield path
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("flag", ["--finetune", "--resume"])
def test_a_bad_checkpoint_to_start_from(refused, words, tmp_path, bad_checkpoint, flag):
    line = refused(*words(tmp_path / "run", flag, bad_checkpoint))
    if bad_checkpoint.stem != "no weights" or flag == "--resume":
        assert str(bad_checkpoint) in line
    assert not (tmp_path / "run").exists()


def test_a_bad_checkpoint_to_evaluate(refused, bad_checkpoint):
    refused("eval", "--model-path", bad_checkpoint, "--data-set", "DIGITS", "--arch", "test_freqformer")


def test_a_bad_checkpoint_to_predict_with(refused, bad_checkpoint, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    refused("predict", "--model-path", bad_checkpoint, "--arch", "test_freqformer", tmp_path / "a.png")


# A write that fails


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failed_write_keeps_the_last_good_checkpoint(command, words, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    save, saved = torch.save, []

    def fail_later(value, file, *args, **kwargs):
        saved.append(file)
        if len(saved) > 4:
            file.write(b"half a checkpoint")
            full_disk()
        save(value, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", fail_later)
    failed = command(*words(folder, "--epochs", 6))
    assert failed.code == 1
    assert failed.err.count("\n") == 1
    assert os.strerror(errno.ENOSPC) in failed.err
    assert "--resume" in failed.err
    monkeypatch.setattr(torch, "save", save)
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] >= 2
    torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert list(folder.rglob("*.tmp")) == []
    answer = command("train", "--output-dir", folder, "--resume")
    assert answer.code == 0, answer.err
    assert [row["epoch"] for row in json.loads((folder / "metrics.json").read_text())["epochs"]] == [1, 2, 3, 4, 5, 6]


def test_a_run_in_python_raises_one_line(tiny, tmp_path):
    with pytest.raises(FreqFormerError) as error:
        run(tiny(tmp_path / "run", arch="nosuch"))
    assert "\n" not in str(error.value)


def test_ctrl_c_during_the_evaluation_of_the_best_epoch(command, words, tmp_path, signal_at):
    """After the last epoch the signals are Python's again, and the run can be gone on with."""
    disarm = signal_at(23, signal.SIGINT, "validation_step")  # 355 images are 23 batches
    answer = command(*words(tmp_path / "run"))
    disarm()
    assert answer.code == 130
    assert answer.err.count("\n") == 1
    answer = command("train", "--output-dir", tmp_path / "run", "--resume")
    assert answer.code == 0, answer.err
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["best"]["images"] == 355
