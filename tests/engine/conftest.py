"""What the tests of the engine share: tiny runs, the command line in this process, and what runs leave behind."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from freqformer.cli import main
from freqformer.engine import run
from freqformer.tasks import Classification, ClassificationConfig

STEPS = 6  # of an epoch of a tiny run: 96 images in batches of 16


@dataclass
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def own_signals():
    """Whatever a test leaves of the signals' handlers must not reach the next one."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def own_place(tmp_path_factory, monkeypatch):
    """Without --output-dir runs and evaluations write below the current folder."""
    monkeypatch.chdir(tmp_path_factory.mktemp("place"))


@pytest.fixture
def command(capfd):
    """Call the command line in this process."""

    def call(*words):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        return Answer(stop.value.code, *capfd.readouterr())

    return call


@pytest.fixture
def refused(command):
    """Call the command line; it must exit with code 2 and a single line on stderr, which is returned."""

    def call(*words):
        answer = command(*words)
        assert answer.code == 2, answer
        assert answer.err.startswith("freqformer: "), answer
        assert answer.err.count("\n") == 1, answer.err
        assert "Traceback" not in answer.out + answer.err
        return answer.err

    return call


@pytest.fixture(scope="session")
def tiny():
    """Settings of a run of a few seconds in which everything random is on."""

    def make(folder, **changes):
        settings = {
            "arch": "test_freqformer",
            "data_set": "DIGITS",
            "limit_train": 16 * STEPS,
            "epochs": 3,
            "batch_size": 16,
            "lr": 1e-2,
            "lr_base_batch": None,
            "drop": 0.1,
            "drop_path": 0.3,
            "reprob": 0.5,
            "model_ema": True,
            "model_ema_decay": 0.9,
            "precision": "32-true",
            "accelerator": "cpu",
            "num_workers": 0,
            "output_dir": str(folder),
        }
        return ClassificationConfig(**{**settings, **changes})

    return make


@pytest.fixture(scope="session")
def words():
    """Flags of the smallest run on the digits."""

    def make(folder, *more):
        given = "--arch test_freqformer --data-set DIGITS --limit-train 32 --epochs 1 --batch-size 16 --num-workers 0"
        return ["train", *given.split(), "--accelerator", "cpu", "--output-dir", str(folder), *map(str, more)]

    return make


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """A run of three epochs that nothing disturbed; to be read only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(tiny(folder))
    return folder


@pytest.fixture
def signal_at(monkeypatch):
    """Let a signal arrive in a given training step (or validation step) of this process."""

    def arm(step, number=signal.SIGTERM, hook="training_step"):
        if number == signal.SIGINT:
            # A shell starts its background jobs deaf to Ctrl-C.
            signal.signal(number, signal.default_int_handler)
        original = getattr(Classification, hook)
        calls = iter(range(10**6))

        def hooked(self, batch, batch_idx):
            if next(calls) == step:
                os.kill(os.getpid(), number)
            return original(self, batch, batch_idx)

        monkeypatch.setattr(Classification, hook, hooked)
        return lambda: monkeypatch.setattr(Classification, hook, original)

    return arm


@pytest.fixture(scope="session")
def left_behind():
    """Everything of a finished run that must not depend on when it was stopped: tensors and figures."""

    def read(folder):
        folder = Path(folder)
        checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
        parts = {
            "exported": load_file(folder / "model.safetensors"),
            **{
                key: checkpoint[key]
                for key in ("state_dict", "optimizer_states", "lr_schedulers", "current_model_state")
                if key in checkpoint
            },
        }
        metrics = json.loads((folder / "metrics.json").read_text())
        parts_of_it = [metrics[name] for name in ("best", "raw", "average") if name in metrics]
        for row in [metrics, *parts_of_it, *metrics["epochs"]]:
            for name in ("seconds", "train_seconds", "images_per_second"):
                row.pop(name, None)
        return {**dict(_leaves(parts)), "metrics": json.dumps(metrics)}

    return read


def _leaves(value, name=""):
    """Tensors as bytes, so that equal means bit for bit."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from _leaves(item, f"{name}.{place}")
    elif isinstance(value, torch.Tensor):
        yield (
            name,
            (
                str(value.dtype),
                tuple(value.shape),
                value.contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else value.item(),
            ),
        )
    else:
        yield name, value


@pytest.fixture
def class_folders(tmp_path):
    """Write a data set of class folders with small noisy images, and return its root."""

    def write(name="data", classes=("cat", "dog", "owl"), train=6, val=2, side=32):
        root = tmp_path / name
        for split, count in (("train", train), ("val", val)):
            for target, label in enumerate(classes):
                folder = root / split / label
                if not count:
                    continue
                folder.mkdir(parents=True)
                for i in range(count):
                    noise = np.random.default_rng([target, i, count]).integers(0, 80, (side, side, 3))
                    noise[..., target % 3] += 150
                    Image.fromarray(noise.astype(np.uint8)).save(folder / f"{i}.png")
        return root

    return write
