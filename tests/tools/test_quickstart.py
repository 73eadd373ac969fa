"""`freqformer quickstart`, end to end."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from PIL import Image

from freqformer.tasks import Classification
from freqformer.tools import digits_config, quickstart

MADE = [
    "model.safetensors",
    "config.json",
    "config.yaml",
    "checkpoints/last.ckpt",
    "metrics.json",
    "curves.png",
    "confusion.png",
    "predictions.png",
    "report.html",
]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The command as a newcomer calls it."""
    folder = tmp_path_factory.mktemp("first")
    done = subprocess.run(
        [sys.executable, "-m", "freqformer", "quickstart"], cwd=folder, capture_output=True, text=True, check=False
    )
    return folder / "runs" / "quickstart", done


@pytest.mark.slow
def test_quickstart_ends_with_its_accuracy_and_time(first):
    _, done = first
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(r"held-out accuracy (\d+\.\d+)%, trained in \d+ s \(\d+ s in all\)", last)
    assert found, last
    assert float(found[1]) >= 97
    assert done.stderr == ""


@pytest.mark.slow
def test_quickstart_leaves_what_it_names(first):
    folder, done = first
    for name in MADE:
        assert (folder / name).is_file(), name
        if name != "config.yaml":
            assert name in done.stdout
    with Image.open(folder / "predictions.png") as picture:
        assert picture.format == "PNG"
    assert json.loads((folder / "metrics.json").read_text())["best"]["top1"] >= 0.97


@pytest.fixture
def short(monkeypatch):
    """A quickstart of one epoch."""
    module = sys.modules["freqformer.tools.quickstart"]

    def config(output_dir):
        settings = digits_config(output_dir)
        settings.epochs, settings.limit_train, settings.num_workers = 1, 96, 0
        return settings

    monkeypatch.setattr(module, "digits_config", config)


@pytest.mark.parametrize("again", ["{}", "{}/", "{}/../quick"])
def test_a_second_quickstart_replaces_the_first(short, command, tmp_path, again):
    folder = tmp_path / "quick"
    assert command("quickstart", "--output-dir", folder).code == 0
    (folder / "notes.txt").write_text("mine")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    answer = command("quickstart", "--output-dir", again.format(folder))
    assert answer.code == 0, answer.err
    assert (folder / "model.safetensors").stat().st_mtime_ns > before
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_quickstart_does_not_replace_another_run(short, command, refused, tmp_path):
    folder = tmp_path / "run"
    flags = "--arch test_freqformer --data-set DIGITS --limit-train 32 --epochs 1 --batch-size 16 --num-workers 0"
    assert command("train", *flags.split(), "--output-dir", folder).code == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert str(folder) in refused("quickstart", "--output-dir", folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_quickstart_in_python_returns_its_figures(short, tmp_path, capsys):
    figures = quickstart(str(tmp_path / "quick"))
    assert figures.keys() == {"top1", "train_seconds"}
    assert figures["top1"] == json.loads((tmp_path / "quick" / "metrics.json").read_text())["best"]["top1"]
    assert "held-out accuracy" in capsys.readouterr().out.splitlines()[-1]


def test_an_interrupted_quickstart_can_be_started_again(short, command, tmp_path, monkeypatch):
    """Its folder holds a run that was stopped before its first epoch."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    original = Classification.training_step

    def hooked(self, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "training_step", hooked)
        assert command("quickstart", "--output-dir", tmp_path / "quick").code == 143
    for number, handler in before.items():
        signal.signal(number, handler)
    answer = command("quickstart", "--output-dir", tmp_path / "quick")
    assert answer.code == 0, answer.err
