"""A run that was stopped and resumed is the run that was never stopped, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from freqformer.engine import RESUME_LAST, Interrupted, run
from freqformer.tasks import Classification

STEPS = 6  # of an epoch, see conftest's tiny


@pytest.fixture
def seen(monkeypatch):
    """The images of every training step: index and pixels."""
    steps = []
    original = Classification.training_step

    def hooked(self, batch, batch_idx):
        steps.append((batch["index"].tolist(), batch["image"].clone()))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Classification, "training_step", hooked)
    return steps


def stop_and_resume(tiny, folder, signal_at, step, number=signal.SIGTERM, hook="training_step", **changes):
    disarm = signal_at(step, number, hook)
    with pytest.raises(Interrupted):
        run(tiny(folder, **changes))
    disarm()
    assert "best" not in json.loads(
        (folder / "metrics.json").read_text() if (folder / "metrics.json").exists() else "{}"
    )
    return run(tiny(folder, resume=RESUME_LAST, **changes))


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGTERM, 0),  # the very first step
        (signal.SIGINT, STEPS + 2),  # in mid-epoch
        (signal.SIGTERM, 2 * STEPS - 2),  # one step before the epoch's last
        (signal.SIGTERM, 2 * STEPS - 1),  # the epoch's last step: stops on the boundary
        (signal.SIGINT, 2 * STEPS),  # the first step after a boundary
        (signal.SIGTERM, 3 * STEPS - 1),  # the run's last step: only the end is left
    ],
)
def test_a_signal_and_resume_change_no_bit(tiny, finished, tmp_path, signal_at, left_behind, number, step):
    folder = tmp_path / "run"
    stop_and_resume(tiny, folder, signal_at, step, number)
    assert_same(left_behind(folder), left_behind(finished))


def test_a_signal_during_validation_and_resume_change_no_bit(tiny, finished, tmp_path, signal_at, left_behind):
    folder = tmp_path / "run"
    stop_and_resume(tiny, folder, signal_at, 1, hook="validation_step")
    assert_same(left_behind(folder), left_behind(finished))


def test_stopping_again_and_again_changes_no_bit(tiny, finished, tmp_path, signal_at, left_behind):
    folder = tmp_path / "run"
    for stops, step in enumerate((1, 4, 5, 0, 2)):
        disarm = signal_at(step)
        with pytest.raises(Interrupted):
            run(tiny(folder, resume=RESUME_LAST if stops else None))
        disarm()
    run(tiny(folder, resume=RESUME_LAST))
    assert_same(left_behind(folder), left_behind(finished))


def test_resume_takes_up_the_very_batch_and_repeats_none(tiny, tmp_path, signal_at, seen):
    run(tiny(tmp_path / "whole"))
    whole = list(seen)
    seen.clear()
    stop_and_resume(tiny, tmp_path / "stopped", signal_at, STEPS + 2)
    assert [indices for indices, _ in seen] == [indices for indices, _ in whole]
    assert all(torch.equal(ours, theirs) for (_, ours), (_, theirs) in zip(seen, whole, strict=True))


def test_every_epoch_has_each_image_once_in_another_order_and_other_pixels(tiny, tmp_path, seen):
    run(tiny(tmp_path / "run"))
    assert len(seen) == 3 * STEPS
    orders = [[i for indices, _ in seen[e * STEPS : (e + 1) * STEPS] for i in indices] for e in range(3)]
    assert all(len(set(order)) == 16 * STEPS for order in orders)
    assert set(orders[0]) == set(orders[1]) == set(orders[2])
    assert orders[0] != orders[1] != orders[2] != orders[0]
    pixels = [
        {
            i: image
            for indices, images in seen[e * STEPS : (e + 1) * STEPS]
            for i, image in zip(indices, images, strict=True)
        }
        for e in range(2)
    ]
    # The augmentation of an image is another one in each epoch.
    differ = sum(not torch.equal(pixels[0][i], pixels[1][i]) for i in pixels[0])
    assert differ > 0.9 * len(pixels[0])


def test_another_seed_gives_other_weights(tiny, finished, tmp_path, left_behind):
    run(tiny(tmp_path / "run", seed=1))
    ours, theirs = left_behind(tmp_path / "run"), left_behind(finished)
    assert ours[".exported.head.weight"] != theirs[".exported.head.weight"]


@pytest.mark.parametrize("switched", [{"drop_path": 0.0}, {"mixup": 0, "cutmix": 0}, {"aa": "none"}, {"reprob": 0}])
def test_what_the_resume_tests_switch_on_does_change_the_run(tiny, finished, tmp_path, left_behind, switched):
    run(tiny(tmp_path / "run", **switched))
    assert left_behind(tmp_path / "run")[".exported.head.weight"] != left_behind(finished)[".exported.head.weight"]


def test_the_number_of_workers_changes_no_bit(tiny, finished, tmp_path, left_behind):
    run(tiny(tmp_path / "run", num_workers=2))
    assert_same(left_behind(tmp_path / "run"), left_behind(finished))


def test_two_workers_stopped_and_resumed_change_no_bit(tiny, finished, tmp_path, signal_at, left_behind):
    stop_and_resume(tiny, tmp_path / "run", signal_at, STEPS + 1, num_workers=2)
    assert_same(left_behind(tmp_path / "run"), left_behind(finished))


FREQFIT = {"opt": "sgd", "sched_by_epoch": True, "warmup_prefix": True, "warmup_epochs": 1, "decay_all": True}


@pytest.mark.slow
@pytest.mark.parametrize("step", [STEPS + 2, 2 * STEPS - 1, 2 * STEPS])
def test_a_rate_set_by_epochs_resumes_exactly(tiny, tmp_path, signal_at, left_behind, step):
    metrics = run(tiny(tmp_path / "whole", **FREQFIT))
    assert [row["lr"] for row in metrics["epochs"]] == pytest.approx([1e-6, 1e-2, 5.005e-3])
    stop_and_resume(tiny, tmp_path / "stopped", signal_at, step, **FREQFIT)
    assert_same(left_behind(tmp_path / "stopped"), left_behind(tmp_path / "whole"))


@pytest.mark.parametrize("changes", [{"precision": "bf16-mixed"}, {"model_ema": False, "opt": "sgd", "sched": "step"}])
def test_other_settings_resume_exactly(tiny, tmp_path, signal_at, left_behind, changes):
    run(tiny(tmp_path / "whole", **changes))
    stop_and_resume(tiny, tmp_path / "stopped", signal_at, STEPS + 3, **changes)
    assert_same(left_behind(tmp_path / "stopped"), left_behind(tmp_path / "whole"))


def test_a_ragged_last_batch_resumes_exactly(tiny, tmp_path, signal_at, left_behind):
    changes = {"limit_train": 16 * STEPS + 7}
    run(tiny(tmp_path / "whole", **changes))
    stop_and_resume(tiny, tmp_path / "stopped", signal_at, STEPS + 3, **changes)
    assert_same(left_behind(tmp_path / "stopped"), left_behind(tmp_path / "whole"))


def test_a_class_folder_run_resumes_exactly(tiny, class_folders, tmp_path, signal_at, left_behind):
    changes = {"data_set": "FOLDER", "data_path": str(class_folders(train=8)), "limit_train": None, "batch_size": 4}
    run(tiny(tmp_path / "whole", **changes))
    stop_and_resume(tiny, tmp_path / "stopped", signal_at, STEPS + 3, **changes)
    assert_same(left_behind(tmp_path / "stopped"), left_behind(tmp_path / "whole"))


def test_metrics_have_every_epoch_once(tiny, tmp_path, signal_at):
    metrics = stop_and_resume(tiny, tmp_path / "run", signal_at, STEPS + 3)
    assert [row["epoch"] for row in metrics["epochs"]] == [1, 2, 3]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics


def test_a_run_gives_the_signals_back(tiny, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(tiny(tmp_path / "run", epochs=1))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_interrupted_run_gives_the_signals_back(tiny, tmp_path, signal_at):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    signal_at(2)
    with pytest.raises(Interrupted):
        run(tiny(tmp_path / "run", epochs=1))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# The command line


def flags_of(config):
    """A config as the command line's flags."""
    words = ["train"]
    for name, value in vars(config).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words += [flag] if value else []
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        elif value != {}:
            words += [] if value is None and name != "lr_base_batch" else [flag, _text(value)]
    return words


def _text(value):
    return str(list(value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_says_how_to_go_on_and_its_signal(command, tiny, tmp_path, signal_at, number, code):
    signal_at(2, number)
    answer = command(*flags_of(tiny(tmp_path / "run")))
    assert answer.code == code
    assert answer.err.count("\n") == 1
    assert "--resume" in answer.err
    assert "Traceback" not in answer.out + answer.err


def test_resume_needs_nothing_but_the_folder(command, tiny, finished, tmp_path, signal_at, left_behind):
    disarm = signal_at(STEPS + 2)
    assert command(*flags_of(tiny(tmp_path / "run"))).code == 143
    disarm()
    answer = command("train", "--output-dir", tmp_path / "run", "--resume")
    assert answer.code == 0, answer.err
    assert_same(left_behind(tmp_path / "run"), left_behind(finished))


def test_resume_with_a_checkpoint_of_the_run(tiny, command, finished, tmp_path, signal_at, left_behind):
    disarm = signal_at(STEPS + 2)
    assert command(*flags_of(tiny(tmp_path / "run"))).code == 143
    disarm()
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    answer = command(*flags_of(tiny(tmp_path / "run", resume=str(checkpoint))))
    assert answer.code == 0, answer.err
    assert_same(left_behind(tmp_path / "run"), left_behind(finished))


def test_resume_with_a_copied_checkpoint_into_a_new_folder(tiny, command, finished, tmp_path, signal_at, left_behind):
    disarm = signal_at(2)  # before there is a best epoch
    assert command(*flags_of(tiny(tmp_path / "run"))).code == 143
    disarm()
    copy = tmp_path / "copy.ckpt"
    shutil.copy(tmp_path / "run" / "checkpoints" / "last.ckpt", copy)
    answer = command(*flags_of(tiny(tmp_path / "new", resume=str(copy))))
    assert answer.code == 0, answer.err
    assert_same(left_behind(tmp_path / "new"), left_behind(finished))


def test_resume_in_a_moved_folder(tiny, command, finished, tmp_path, signal_at, left_behind):
    disarm = signal_at(2 * STEPS + 2)
    assert command(*flags_of(tiny(tmp_path / "run"))).code == 143
    disarm()
    (tmp_path / "run").rename(tmp_path / "moved")
    answer = command("train", "--output-dir", tmp_path / "moved", "--resume")
    assert answer.code == 0, answer.err
    assert not (tmp_path / "run").exists()
    assert_same(left_behind(tmp_path / "moved"), left_behind(finished))


def test_a_model_resumed_elsewhere_is_the_one_its_metrics_name(tiny, finished, tmp_path):
    """The last checkpoint knows of best epochs whose weights lie in the other folder."""
    folder = tmp_path / "new"
    metrics = run(tiny(folder, epochs=4, lr=0.0, resume=str(finished / "checkpoints" / "last.ckpt")))
    assert [row["epoch"] for row in metrics["epochs"]] == [1, 2, 3, 4]
    assert metrics["best"]["top1"] == pytest.approx(max(row["val/top1"] for row in metrics["epochs"][3:]), abs=1e-6)
    assert (folder / "model.safetensors").exists()


def test_a_finished_checkpoint_resumed_elsewhere_finishes_or_is_refused(command, tiny, finished, tmp_path):
    """None of its epochs is left, and the best one's weights lie in the other folder."""
    checkpoint = finished / "checkpoints" / "last.ckpt"
    answer = command(*flags_of(tiny(tmp_path / "new", resume=str(checkpoint))))
    assert answer.code in (0, 2)
    if answer.code == 0:
        assert (tmp_path / "new" / "model.safetensors").exists()
    else:
        assert "Error" not in answer.err
        assert str(checkpoint) in answer.err
        assert not (tmp_path / "new").exists()


def files_in(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_has_nothing_left_to_do(command, finished):
    before = files_in(finished)
    answer = command("train", "--output-dir", finished, "--resume")
    assert answer.code == 0, answer.err
    assert "nothing is left to do" in answer.out
    assert files_in(finished) == before


def test_a_finished_run_goes_on_with_more_epochs(command, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    before = json.loads((tmp_path / "run" / "metrics.json").read_text())
    answer = command("train", "--output-dir", tmp_path / "run", "--resume", "--epochs", 4)
    assert answer.code == 0, answer.err
    after = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [row["epoch"] for row in after["epochs"]] == [1, 2, 3, 4]
    assert after["epochs"][:3] == before["epochs"]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["epochs"] == 4


def test_more_epochs_follow_the_longer_schedule(tiny, tmp_path):
    run(tiny(tmp_path / "run", epochs=2))
    longer = run(tiny(tmp_path / "run", epochs=5, resume=RESUME_LAST))
    whole = run(tiny(tmp_path / "whole", epochs=5))
    rates = [[row["lr"] for row in metrics["epochs"]] for metrics in (longer, whole)]
    assert rates[0][1] < rates[1][1]
    assert rates[0][2:] == rates[1][2:]


def test_a_resumed_runs_first_step_has_its_own_rate_and_settings(tiny, tmp_path, signal_at, monkeypatch):
    disarm = signal_at(STEPS + 1)
    with pytest.raises(Interrupted):
        run(tiny(tmp_path / "run"))
    disarm()
    rates = []
    original = Classification.on_before_optimizer_step

    def hooked(self, optimizer):
        rates.append((optimizer.param_groups[0]["lr"], {group["weight_decay"] for group in optimizer.param_groups}))
        original(self, optimizer)

    monkeypatch.setattr(Classification, "on_before_optimizer_step", hooked)
    run(tiny(tmp_path / "whole", epochs=5, lr=0.02, weight_decay=0.3))
    whole = rates[STEPS + 2 :]
    rates.clear()
    run(tiny(tmp_path / "run", epochs=5, lr=0.02, weight_decay=0.3, resume=RESUME_LAST))
    assert rates == whole
    assert rates[0][1] == {0.0, 0.3}


def test_a_run_whose_config_says_all_replays(command, finished, tmp_path, left_behind):
    answer = command("train", "--config", finished / "config.yaml", "--output-dir", tmp_path / "new")
    assert answer.code == 0, answer.err
    assert_same(left_behind(tmp_path / "new"), left_behind(finished))


def test_a_resumed_runs_config_replays_too(tiny, command, finished, tmp_path, signal_at, left_behind):
    stop_and_resume(tiny, tmp_path / "run", signal_at, 2)
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    whole = yaml.safe_load((finished / "config.yaml").read_text())
    assert {**kept, "output_dir": ""} == {**whole, "output_dir": ""}
    answer = command("train", "--config", tmp_path / "run" / "config.yaml", "--output-dir", tmp_path / "new")
    assert answer.code == 0, answer.err
    assert_same(left_behind(tmp_path / "new"), left_behind(finished))


def test_resume_of_nothing_is_refused(refused, tmp_path):
    assert "no run to resume" in refused("train", "--output-dir", tmp_path / "none", "--resume")
    assert not (tmp_path / "none").exists()


def test_resume_with_weights_alone_is_refused(refused, finished, words, tmp_path):
    line = refused(*words(tmp_path / "new", "--resume", finished / "model.safetensors"))
    assert "--finetune" in line


def test_resume_with_another_model_is_refused_and_keeps_the_run(refused, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    before = files_in(tmp_path / "run")
    refused("train", "--output-dir", tmp_path / "run", "--resume", "--epochs", 4, "--arch", "test_gfnet")
    assert files_in(tmp_path / "run") == before


def test_a_damaged_last_checkpoint_is_refused_and_kept(refused, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    before = files_in(tmp_path / "run")
    assert str(last) in refused("train", "--output-dir", tmp_path / "run", "--resume", "--epochs", 4)
    assert files_in(tmp_path / "run") == before


# Processes that are killed

KILL_AT_WRITE = """
import os, signal, sys
from freqformer.cli import main

left, replace = int(sys.argv[1]), os.replace

def replace_or_die(source, target):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = replace_or_die
main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("write", [0, 1, 3, 6, 9])
def test_a_kill_in_a_write_loses_nothing(tiny, finished, tmp_path, left_behind, write):
    folder = tmp_path / "run"
    flags = flags_of(tiny(folder))
    killed = subprocess.run([sys.executable, "-c", KILL_AT_WRITE, str(write), *flags], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    for kept in folder.glob("checkpoints/*.ckpt"):
        torch.load(kept, weights_only=True)
    if (folder / "config.yaml").exists():
        flags = ["train", "--output-dir", str(folder), "--resume"]
    resumed = subprocess.run([sys.executable, "-m", "freqformer", *flags], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert_same(left_behind(folder), left_behind(finished))
    assert list(folder.rglob("*.tmp")) == []


def wait_for(process, wanted):
    deadline = time.monotonic() + 120
    while not wanted():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the first checkpoint", "after an epoch"])
def test_a_killed_process_with_workers_resumes_exactly(tiny, finished, tmp_path, left_behind, moment):
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "freqformer", *flags_of(tiny(folder, num_workers=2))]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        last = folder / "checkpoints" / "last.ckpt"
        wait_for(process, (folder / "config.yaml" if moment.startswith("before") else last).exists)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "best" not in json.loads(
        (folder / "metrics.json").read_text() if (folder / "metrics.json").exists() else "{}"
    )
    again = [sys.executable, "-m", "freqformer", "train", "--output-dir", str(folder), "--resume"]
    resumed = subprocess.run(again, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert_same(left_behind(folder), left_behind(finished))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_on_the_whole_group_with_workers_stops_in_order(tiny, tmp_path, number):
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "freqformer", *flags_of(tiny(folder, num_workers=2, epochs=500))]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for(process, (folder / "checkpoints" / "last.ckpt").exists)
        # A terminal sends Ctrl-C to every process of the group; torchrun and timeout do so with SIGTERM.
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 128 + number
    assert err.count("\n") == 1, err
    assert "--resume" in err
    torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
