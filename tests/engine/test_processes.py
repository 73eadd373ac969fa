"""Two processes are one with the same global batch, however they were started, and end together."""

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from freqformer.engine import RESUME_LAST, EvaluationConfig, Interrupted, evaluate, run
from freqformer.engine.callbacks import Record
from freqformer.engine.processes import together
from freqformer.errors import FreqFormerError
from freqformer.tasks import Classification, ClassificationConfig

STEPS = 6
# 355 validation images: no multiple of two batches, nor of two.
QUIET = {"mixup": 0.0, "cutmix": 0.0, "drop": 0.0, "drop_path": 0.0, "aa": "none", "reprob": 0.0, "model_ema": False}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Two processes of as many threads as one have half of them each; sums then differ in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def quiet(tiny):
    """Settings of a run without randomness, whose global batch is the same in one process and in two."""

    def make(folder, processes=1, **changes):
        return tiny(folder, **{**QUIET, "epochs": 2, "batch_size": 16 // processes, **changes})

    return make


def watch_losses(patch):
    """The loss of every step of this process's runs to come, the mean over its processes."""
    seen = []
    original = Record.on_train_batch_end

    def hooked(self, trainer, *rest):
        seen.append(float(trainer.callback_metrics["train/loss"]))
        original(self, trainer, *rest)

    patch.setattr(Record, "on_train_batch_end", hooked)
    return seen


@pytest.fixture(scope="module")
def alone(quiet, tmp_path_factory):
    """What one process leaves behind, and its losses."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        seen = watch_losses(patch)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        run(quiet(folder))
        torch.set_num_threads(threads)
    return folder, seen


def flags_of(config):
    """A config as the command line's flags."""
    words = ["train"]
    for name, value in vars(config).items():
        if value is True:
            words += [f"--{name.replace('_', '-')}"]
        elif value is not False and value != {} and (value is not None or name == "lr_base_batch"):
            words += [f"--{name.replace('_', '-')}", str(list(value) if isinstance(value, tuple) else value)]
    return words


def figures(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = [*metrics["epochs"], metrics["best"]]
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def assert_alike(folder, other):
    """The same run to float tolerance."""
    for ours, theirs in zip(figures(folder), figures(other), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    ours, theirs = load_file(folder / "model.safetensors"), load_file(other / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-4)


def differing(folder, other, left_behind):
    """What is not the same to the last bit."""
    ours, theirs = left_behind(folder), left_behind(other)
    return [name for name in theirs if ours.get(name) != theirs[name]]


def launched(words, folder, environments=({},)):
    """Commands that run at the same time; each one's output."""
    started = [
        subprocess.Popen(
            [str(word) for word in words],
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        for environ in environments
    ]
    try:
        return [(*process.communicate(timeout=300), process.returncode) for process in started]
    finally:
        for process in started:
            process.kill()


def torchrun(*words):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.mark.slow
def test_two_processes_have_the_losses_and_metrics_of_one(quiet, alone, monkeypatch, tmp_path):
    losses = watch_losses(monkeypatch)
    run(quiet(tmp_path / "run", 2, devices=2))
    assert len(losses) == 2 * STEPS
    assert losses == pytest.approx(alone[1], rel=1e-5)
    assert_alike(tmp_path / "run", alone[0])
    assert figures(tmp_path / "run")[-1]["images"] == 355


@pytest.fixture(scope="module")
def under_torchrun(quiet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun") / "run"
    ((out, err, code),) = launched(torchrun("-m", "freqformer", *flags_of(quiet(folder, 2))), folder.parent)
    assert code == 0, err
    return folder, out


@pytest.mark.slow
def test_torchrun_needs_no_flag_and_one_process_prints(under_torchrun, alone):
    folder, out = under_torchrun
    assert_alike(folder, alone[0])
    assert [out.count(line) for line in ("2 processes", "epoch 1/2", "best epoch")] == [1, 1, 1]
    assert len(list((folder / "logs").iterdir())) == 1


KILLING = """
import os, signal
from freqformer.cli import main
from freqformer.tasks import Classification

step = Classification.training_step

def step_or_die(self, batch, batch_idx):
    first_try = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first_try and os.environ["RANK"] == "1" and self.trainer.global_step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)

Classification.training_step = step_or_die
main()
"""


@pytest.mark.slow
def test_torchrun_restarts_from_the_last_checkpoint(quiet, under_torchrun, tmp_path, left_behind):
    script = tmp_path / "killing.py"
    script.write_text(KILLING)
    command = torchrun("--max-restarts", "1", script, *flags_of(quiet(tmp_path / "run", 2)))
    ((out, err, code),) = launched(command, tmp_path)
    assert code == 0, err
    assert out.count("epoch 1/2") == 1, "the restarted run began anew"
    # The process that is left may be ended by torchrun before it can say what it lost.
    assert err.count("freqformer: ") <= 1
    assert differing(tmp_path / "run", under_torchrun[0], left_behind) == []


@pytest.mark.slow
def test_a_restart_does_not_take_up_another_run(quiet, alone, refused, tmp_path, monkeypatch):
    shutil.copytree(alone[0], tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert "holds another run" in refused(*flags_of(quiet(tmp_path / "run", epochs=5)))


def slurm(local):
    shared = {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_JOB_ID": free_port(), "SLURM_JOB_NAME": "test"}
    return [{**shared, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "SLURM_NODEID": "0"} for i in range(local)]


def open_mpi(local):
    prefix, port = "OMPI_COMM_WORLD_", free_port()
    shared = {f"{prefix}SIZE": "2", f"{prefix}LOCAL_SIZE": "2", "MASTER_PORT": port}
    return [{**shared, f"{prefix}RANK": str(i), f"{prefix}LOCAL_RANK": str(i)} for i in range(local)]


@pytest.mark.slow
@pytest.mark.parametrize("environments", [slurm, open_mpi])
def test_tasks_of_slurm_and_mpi_find_each_other(quiet, tmp_path, environments):
    words = [sys.executable, "-m", "freqformer", *flags_of(quiet(tmp_path / "run", 2, epochs=1, limit_train=32))]
    first, second = launched(words, tmp_path, environments(2))
    assert first[2] == second[2] == 0, first[1] + second[1]
    assert "2 processes" in first[0]
    assert second[0] == second[1] == ""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="there is no mpirun here")
def test_mpirun_itself(quiet, tmp_path):
    words = flags_of(quiet(tmp_path / "run", 2, epochs=1, limit_train=32))
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, "-m", "freqformer"]
    ((out, err, code),) = launched([*command, *words], tmp_path, [{"MASTER_PORT": free_port()}])
    assert code == 0, out + err
    assert "2 processes" in out


@pytest.mark.slow
def test_shards_train_and_go_on_in_one_process_and_back(quiet, alone, tmp_path, signal_at, monkeypatch):
    folder = tmp_path / "run"
    sharded = []
    original = Classification.training_step

    def looking(self, batch, batch_idx):
        sharded.append(all(isinstance(parameter, DTensor) for parameter in self.model.parameters()))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Classification, "training_step", looking)
    disarm = signal_at(3)
    with pytest.raises(Interrupted):
        run(quiet(folder, 2, devices=2, strategy="fsdp"))
    disarm()
    assert sharded == [True] * 4
    disarm = signal_at(4)
    with pytest.raises(Interrupted):
        run(quiet(folder, resume=RESUME_LAST))
    disarm()
    assert sharded == [True] * 4 + [False] * 5
    run(quiet(folder, 2, devices=2, strategy="fsdp", resume=RESUME_LAST))
    assert sharded == [True] * 4 + [False] * 5 + [True] * 3
    assert_alike(folder, alone[0])


@pytest.mark.slow
def test_one_process_goes_on_where_two_had_another_global_batch(quiet, tmp_path, signal_at):
    """As when a node is lost: four batches of 16 done by two, then batches of 8, on the same images."""
    changes = {"epochs": 3, "lr_base_batch": 16, "model_ema": True}
    disarm = signal_at(STEPS + 4)
    with pytest.raises(Interrupted):
        run(quiet(tmp_path / "run", 2, devices=2, **changes))
    disarm()
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        original = Classification.training_step

        def looking(self, batch, batch_idx):
            seen.append((self.trainer.global_step, batch["index"].tolist()))
            return original(self, batch, batch_idx)

        patch.setattr(Classification, "training_step", looking)
        metrics = run(quiet(tmp_path / "run", 2, resume=RESUME_LAST, **changes))
        again = len(seen)
        run(quiet(tmp_path / "whole", 2, **changes))
    # Five of the second epoch's six batches were done.
    assert again == 2 + 2 * STEPS
    assert seen[:again] == seen[-again:]
    whole = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert [row["epoch"] for row in metrics["epochs"]] == [1, 2, 3]
    assert [row["lr"] for row in metrics["epochs"]][1:] == [row["lr"] for row in whole["epochs"]][1:]


@pytest.mark.slow
def test_a_signal_to_one_process_saves_once_and_ends_all(quiet, under_torchrun, tmp_path, signal_at, left_behind):
    disarm = signal_at(STEPS + 1)
    with pytest.raises(Interrupted) as stop:
        run(quiet(tmp_path / "run", 2, devices=2))
    disarm()
    assert stop.value.exit_code == 143
    run(quiet(tmp_path / "run", 2, devices=2, resume=RESUME_LAST))
    assert differing(tmp_path / "run", under_torchrun[0], left_behind) == []


@pytest.mark.slow
def test_evaluation_counts_each_image_once(alone, tmp_path):
    config = {"data_set": "DIGITS", "batch_size": 16, "num_workers": 0, "accelerator": "cpu", "precision": "32-true"}
    one = evaluate(EvaluationConfig(str(alone[0]), per_class=str(tmp_path / "1.csv"), **config))
    two = evaluate(EvaluationConfig(str(alone[0]), per_class=str(tmp_path / "2.csv"), devices=2, **config))
    assert two["images"] == one["images"] == 355
    for name in ("top1", "top5", "loss"):
        assert two[name] == pytest.approx(one[name], abs=1e-6)
    assert (tmp_path / "1.csv").read_text() == (tmp_path / "2.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_whose_shares_make_other_numbers_of_batches_do_not_wait_for_ever(tiny, tmp_path, strategy):
    # The stem of this network has buffers, which ddp sends around before each forward; fsdp gathers parameters.
    run(tiny(tmp_path / "run", arch="test_spectformer_h", epochs=1, model_ema=False))
    config = {"data_set": "DIGITS", "num_workers": 0, "accelerator": "cpu", "precision": "32-true"}
    one = evaluate(EvaluationConfig(str(tmp_path / "run"), batch_size=355, **config))
    # Shares of 178 and 177 images: 2 batches and 1.
    two = evaluate(
        EvaluationConfig(str(tmp_path / "run"), batch_size=177, devices=2, strategy=strategy, **config),
    )
    assert two["images"] == one["images"] == 355
    for name in ("top1", "top5", "loss"):
        assert two[name] == pytest.approx(one[name], abs=1e-6)


# What goes wrong

WORK = """
import os, signal, time
from freqformer.engine.processes import gathered, largest, on_first, rank
from freqformer.errors import FreqFormerError

def fail(config):
    largest(0)
    if rank() == 1:
        raise FreqFormerError("the second one has no data")
    largest(0)

def die(config):
    largest(0)
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    largest(0)

def refuse():
    raise ValueError("no")

def talk(config):
    try:
        on_first(refuse)
    except Exception as error:
        raised = type(error).__name__
    return gathered(raised), gathered(rank()), largest(3 - rank()), on_first(rank)
"""


@dataclass
class Work:
    devices: int | str = 2
    num_nodes: int = 1
    strategy: str = "auto"
    accelerator: str = "cpu"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Functions that the other process can import."""
    (tmp_path / "some_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("some_work")
    del sys.modules["some_work"]


@pytest.mark.slow
def test_what_processes_say_to_each_other(work):
    assert together(work.talk, Work()) == (["ValueError", "SaidElsewhere"], [0, 1], 3, 0)
    assert together(work.talk, Work(devices=1)) == (["ValueError"], [0], 3, 0)


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_its_message(work, capfd):
    with pytest.raises(FreqFormerError, match=r"^the second one has no data$") as stop:
        together(work.fail, Work())
    assert stop.value.exit_code == 2
    with pytest.raises(FreqFormerError, match="process 1 of 2 was ended by SIGKILL: continue with --resume") as stop:
        together(work.die, Work())
    assert stop.value.exit_code == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--devices", 0], "--devices must be auto or at least 1"),
        (["--devices", "two"], "--devices must be auto or at least 1"),
        (["--num-nodes", 0], "--num-nodes must be at least 1"),
        (["--num-nodes", 2], "MASTER_ADDR"),
        (["--strategy", "dp"], "auto, ddp, fsdp"),
        (["--strategy", "fsdp", "--model-ema"], "--model-ema"),
        (["--strategy", "fsdp", "--precision", "16-mixed"], "bf16-mixed"),
    ],
)
def test_wrong_flags_are_refused_before_anything_starts(refused, words, tmp_path, flags, said):
    assert said in refused(*words(tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()


def test_flags_that_contradict_the_launcher_are_refused(refused, words, tmp_path, monkeypatch):
    for name, value in open_mpi(1)[0].items():
        monkeypatch.setenv(name, value)
    assert "mpirun has started 2 on this node" in refused(*words(tmp_path / "run", "--devices", 3))
    assert "mpirun has started 1:" in refused(*words(tmp_path / "run", "--num-nodes", 3))


def test_defaults_are_one_process():
    config = ClassificationConfig()
    assert (config.devices, config.num_nodes, config.strategy) == ("auto", 1, "auto")
