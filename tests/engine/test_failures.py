"""What goes wrong within a run: a loss that is no number, memory, a disk that is full."""

import json
import os
import subprocess
import sys

import pytest
import torch

from freqformer.engine import RESUME_LAST, run
from freqformer.errors import FreqFormerError, RunFailed
from freqformer.tasks import Classification

STEPS = 6  # of an epoch, see conftest's tiny


@pytest.fixture
def loss_at(monkeypatch):
    """Let the loss of some micro-batches be what a function makes of it."""
    original = Classification.loss

    def arm(batches, spoil):
        calls = iter(range(10**6))

        def loss(self, batch):
            value = original(self, batch)
            return spoil(value) if next(calls) in batches else value

        monkeypatch.setattr(Classification, "loss", loss)

    return arm


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_step_rate_and_checkpoint(tiny, tmp_path, loss_at, value):
    loss_at({STEPS + 2}, lambda loss: loss * value)
    with pytest.raises(RunFailed) as failed:
        run(tiny(tmp_path / "run"))
    line = str(failed.value)
    assert f"in step {STEPS + 3} (epoch 2)" in line
    assert str(tmp_path / "run" / "checkpoints" / "last.ckpt") in line
    assert "at learning rate 5.87e-03" in line
    assert "--skip-nan" in line
    assert "\n" not in line
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_before_the_first_checkpoint_none_is_named(tiny, tmp_path, loss_at):
    loss_at({0}, lambda loss: loss * float("nan"))
    with pytest.raises(RunFailed, match="no checkpoint was written yet"):
        run(tiny(tmp_path / "run"))


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"opt": "sgd"}])
def test_so_many_steps_are_passed_over(tiny, tmp_path, loss_at, capsys, changes):
    loss_at({1, STEPS + 2}, lambda loss: loss * float("nan"))
    metrics = run(tiny(tmp_path / "run", skip_nan=2, **changes))
    assert "passed over (2 of 2)" in capsys.readouterr().out
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    assert all(row["train/loss"] == row["train/loss"] for row in metrics["epochs"])
    assert metrics["best"]["top1"] > 0


def test_a_step_that_is_passed_over_changes_nothing(tiny, tmp_path, loss_at):
    # Every step of the only epoch: neither gradients nor weight decay reach the weights.
    loss_at(set(range(STEPS)), lambda loss: loss * float("nan"))
    run(tiny(tmp_path / "run", epochs=1, skip_nan=STEPS, model_ema=False))
    state = weights(tmp_path / "run")
    assert state["model.stages.0.blocks.0.norm1.weight"].eq(1).all()
    assert state["model.head.bias"].eq(0).all()


def test_one_more_than_allowed_stops_also_after_a_restart(tiny, tmp_path, loss_at, signal_at):
    loss_at({1, 3}, lambda loss: loss * float("nan"))
    disarm = signal_at(2)
    with pytest.raises(Exception, match="SIGTERM"):
        run(tiny(tmp_path / "run", skip_nan=1))
    disarm()
    with pytest.raises(RunFailed, match="after 1 such steps were passed over"):
        run(tiny(tmp_path / "run", skip_nan=1, resume=RESUME_LAST))


def test_out_of_memory_names_the_batch_and_the_ways_out(command, words, tmp_path, loss_at):
    # The allocator's own error, for more memory than an address has bits.
    loss_at({1}, lambda loss: loss + torch.empty(1 << 60).sum())
    answer = command(*words(tmp_path / "run"))
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert "--batch-size 16" in answer.err
    assert "--batch-size 8 --accumulate 2" in answer.err
    assert "--grad-checkpointing" in answer.err


def test_a_batch_of_one_is_not_to_be_halved(tiny, tmp_path, loss_at):
    loss_at({0}, lambda loss: loss + torch.empty(1 << 60).sum())
    with pytest.raises(RunFailed, match="--batch-size 1: --grad-checkpointing"):
        run(tiny(tmp_path / "run", batch_size=1, limit_train=10, mixup=0, cutmix=0))


def test_logs_that_cannot_be_written_are_refused_at_the_start(refused, words, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").write_text("a file")
    assert "logs" in refused(*words(tmp_path / "run"))
    assert "cannot write" in refused(*words(tmp_path / "run", "--overwrite"))
    assert (tmp_path / "run" / "logs").read_text() == "a file"
    assert not (tmp_path / "run" / "config.yaml").exists()


FILES_OF_AT_MOST = """
import resource, sys
from freqformer.cli import main

limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_disk_that_refuses_bytes_keeps_the_last_good_checkpoint(words, command, tmp_path):
    folder = tmp_path / "run"
    assert command(*words(folder)).code == 0
    last = folder / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    limited = [sys.executable, "-c", FILES_OF_AT_MOST, str(len(before) // 2)]
    more = ["train", "--output-dir", str(folder), "--resume", "--epochs", "2"]
    failed = subprocess.run([*limited, *more], capture_output=True, text=True, check=False)
    assert failed.returncode == 1, failed
    assert failed.stderr.count("\n") == 1, failed.stderr
    assert "cannot write" in failed.stderr
    assert "--resume" in failed.stderr
    assert last.read_bytes() == before
    assert list(folder.rglob("*.tmp")) == []
    assert command(*more).code == 0
    assert len(json.loads((folder / "metrics.json").read_text())["epochs"]) == 2


def test_a_log_that_fills_the_disk_is_one_line(command, words, tmp_path, monkeypatch):
    from lightning.pytorch.loggers import CSVLogger

    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(CSVLogger, "save", full)
    answer = command(*words(tmp_path / "run"))
    assert answer.code == 1
    assert os.strerror(28) in answer.err
    assert answer.err.count("\n") == 1


def test_run_failed_is_an_error_of_ours():
    assert issubclass(RunFailed, FreqFormerError)
    assert RunFailed.exit_code == 1
