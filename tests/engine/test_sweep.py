"""A sweep: its trials, its seeds and its report; stopped, killed, refused and grown."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("optuna", reason="the extra adapt is not installed")

from freqformer.data import VTAB_TASKS
from freqformer.engine import Interrupted, SweepConfig, signals, sweep
from freqformer.engine.failures import LossIsNoNumber
from freqformer.engine.sweep import protocol
from freqformer.engine.sweep.config import Setting
from freqformer.engine.sweep.lock import LOCK, locked
from freqformer.engine.sweep.results import TaskResult, averaged, means
from freqformer.engine.sweep.trials import begin, best, end, studies, trials_of
from freqformer.errors import FreqFormerError, MissingExtra, RunFailed

DATABASE = "sweep.db"


@pytest.fixture(scope="module")
def data(make_vtab, tmp_path_factory):
    return make_vtab(tmp_path_factory.mktemp("vtab"), ["svhn", "dtd", "eurosat", "kitti"], count=16)


@pytest.fixture
def small(data, tmp_path):
    """The smallest sweep: two settings and two seeds of one task."""

    def make(**changes):
        settings = {
            "tasks": ["svhn"],
            "data_path": str(data),
            "encoder": "test_vit",
            "pretrained": False,
            "input_size": 32,
            "method": "linear",
            "freqfit": "none",
            "lrs": [0.1, 0.01],
            "weight_decays": [0.0],
            "seeds": [42, 44],
            "epochs": 1,
            "batch_size": 4,
            "num_workers": 0,
            "precision": "32-true",
            "accelerator": "cpu",
            "output_dir": str(tmp_path / "sweep"),
        }
        return SweepConfig(**{**settings, **changes})

    return make


class Pretended:
    """In place of a run: it leaves what one leaves, with the scores that a test wants."""

    def __init__(self):
        self.calls = []
        self.scores = {}
        self.stop = None

    def __call__(self, config):
        config.check()
        self.calls.append(config)
        folder = Path(config.output_dir)
        begun = (folder / "config.yaml").exists()
        assert config.resume == ("last" if begun else None)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "adapters").mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
        for name in (
            "checkpoints/last.ckpt",
            "model.safetensors",
            "config.json",
            "curves.png",
            "adapters/adapter.json",
        ):
            (folder / name).touch()
        if self.stop is not None:
            raise self.stop
        is_trial = "trials" in folder.parts
        key = Setting(config.lr, config.weight_decay) if is_trial else config.seed
        top1 = self.scores.get((config.data_set, key), self.scores.get(key, 0.5))
        if top1 is None:
            raise LossIsNoNumber("the loss is nan")
        rows = [{"epoch": 1, "val/top1": 0.99, "seconds": 1.5}, {"epoch": 2, "val/top1": top1, "seconds": 2.0}]
        metrics = {"epochs": rows, "best": {"top1": 0.99}, "trained_parameters": 170, "train_seconds": 1.0}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return metrics

    def made(self):
        """What was run since the last time, in short: trials by setting, final runs by seed."""
        calls, self.calls = self.calls, []
        return [(c.data_set, (c.lr, c.weight_decay) if "trials" in c.output_dir else c.seed) for c in calls]


@pytest.fixture
def pretended(monkeypatch):
    stand_in = Pretended()
    monkeypatch.setattr(protocol, "run", stand_in)
    # There is nothing to collect, but much to look through.
    monkeypatch.setattr(protocol.gc, "collect", lambda: 0)
    return stand_in


def table(folder):
    with (Path(folder) / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def recorded(folder, task="svhn"):
    with studies(Path(folder) / DATABASE, [task]) as opened:
        return {setting: (trial.state.name, trial.value) for setting, trial in trials_of(opened[task]).items()}


def test_every_setting_is_tried_and_the_best_trained_with_every_seed(small, pretended):
    config = small(weight_decays=[0.01, 0.0], seed=7)
    pretended.scores = {Setting(0.01, 0.01): 0.75, 42: 0.5, 44: 0.75}
    results = sweep(config)
    trials, finals = pretended.calls[:4], pretended.calls[4:]
    assert [(c.lr, c.weight_decay) for c in trials] == [(0.1, 0.01), (0.1, 0.0), (0.01, 0.01), (0.01, 0.0)]
    assert {(c.train_split, c.val_split, c.seed) for c in trials} == {("train800", "val200", 7)}
    assert [(c.lr, c.weight_decay, c.seed) for c in finals] == [(0.01, 0.01, 42), (0.01, 0.01, 44)]
    assert {(c.train_split, c.val_split) for c in finals} == {("train800val200", "test")}
    assert results["complete"]
    assert results["tasks"]["svhn"] == {
        "group": "Natural",
        "lr": 0.01,
        "weight_decay": 0.01,
        "validation_top1": 0.75,
        "failed_trials": 0,
        "top1": {42: 0.5, 44: 0.75},
        "mean": 0.625,
        "std": pytest.approx(stdev([0.5, 0.75])),
        "seeds": 2,
    }
    folder = Path(config.output_dir)
    first = {"task": "svhn", "group": "Natural", "seed": "42", "lr": "0.01", "weight_decay": "0.01", "top1": "0.5"}
    assert table(folder)[0] == {**first, "epochs": "2", "trained_parameters": "170", "seconds": "3.5"}
    page = (folder / "results.md").read_text()
    assert "| svhn | Natural | 62.50 ± 17.68 | 2 | 0.01 | 0.01 | 75.00 | 0 |\n" in page
    assert "| Natural | 1 of 1 | 62.50 ± 17.68 | 2 |" in page
    assert "the groups" not in page
    with Image.open(folder / "results.png") as picture:
        assert min(picture.size) > 400
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (
            "all",
            {
                "adapters",
                "checkpoints",
                "config.json",
                "config.yaml",
                "curves.png",
                "metrics.json",
                "model.safetensors",
            },
        ),
        ("adapters", {"adapters", "config.yaml", "curves.png", "metrics.json"}),
        ("metrics", {"config.yaml", "curves.png", "metrics.json"}),
    ],
)
def test_what_is_kept_of_runs(small, pretended, keep, kept):
    config = small(keep=keep)
    sweep(config)
    folder = Path(config.output_dir, "svhn")
    assert {path.name for path in (folder / "seeds/42").iterdir()} == kept
    assert {path.name for path in (folder / "trials/lr0.1_wd0.0").iterdir()} == {
        "config.yaml",
        "curves.png",
        "metrics.json",
    }


@given(
    st.dictionaries(
        st.tuples(st.sampled_from([10.0, 0.1, 1e-3]), st.sampled_from([0.0, 0.1])),
        st.sampled_from([0.25, 0.5, None]),
        min_size=1,
    )
)
def test_of_equal_settings_the_smallest_rate_wins(scores):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for setting, value in scores.items():
        begin(study, Setting(*setting))
        end(study, Setting(*setting), value)
    good = {setting: value for setting, value in scores.items() if value is not None}
    found = best(study)
    if not good:
        assert found is None
        return
    top = max(good.values())
    assert found == (min(setting for setting, value in good.items() if value == top), top)


def test_a_trial_whose_loss_is_no_number_is_passed_over(small, pretended, capsys):
    config = small()
    pretended.scores = {Setting(0.1, 0.0): None, Setting(0.01, 0.0): 0.0}
    results = sweep(config)
    assert (results["tasks"]["svhn"]["lr"], results["tasks"]["svhn"]["failed_trials"]) == (0.01, 1)
    assert recorded(config.output_dir) == {(0.1, 0.0): ("FAIL", None), (0.01, 0.0): ("COMPLETE", 0.0)}
    folder = Path(config.output_dir, "svhn/trials/lr0.1_wd0.0")
    assert (folder / "failed.txt").read_text() == "the loss is nan\n"
    assert not (folder / "checkpoints").exists()
    assert (
        "svhn: trial 1 of 2, lr 0.1, weight decay 0: failed, the loss is nan; left: 1 trial and 2 final runs"
        in capsys.readouterr().out
    )
    pretended.made()
    sweep(config)
    assert pretended.made() == []


def test_nothing_but_failures_leaves_the_other_tasks(small, pretended, command):
    config = small(tasks=["svhn", "dtd"])
    pretended.scores = {("svhn", Setting(0.1, 0.0)): None, ("svhn", Setting(0.01, 0.0)): None, ("dtd", 44): None}
    results = sweep(config)
    assert not results["complete"]
    assert (results["tasks"]["svhn"]["mean"], results["tasks"]["dtd"]["top1"]) == (None, {42: 0.5})
    assert results["tasks"]["dtd"]["std"] is None
    assert results["means"]["Natural"] == {"mean": 0.5, "std": None, "seeds": 1}
    assert "| svhn | Natural | – | 0 | – | – | – | 2 |" in Path(config.output_dir, "results.md").read_text()
    answer = command("adapt", "sweep", "--resume", "--output-dir", config.output_dir)
    assert (answer.code, answer.err) == (1, "")


def test_a_failed_trial_is_not_run_again_when_the_study_is_lost(small, pretended):
    config = small()
    pretended.scores = {("svhn", Setting(0.1, 0.0)): None}
    sweep(config)
    Path(config.output_dir, DATABASE).unlink()
    pretended.made()
    sweep(config)
    assert ("svhn", (0.1, 0.0)) not in pretended.made()
    assert recorded(config.output_dir)[0.1, 0.0] == ("FAIL", None)


@pytest.mark.parametrize("error", [RunFailed("cannot write: No space left on device"), KeyboardInterrupt()])
def test_what_ends_a_run_otherwise_ends_the_sweep_until_it_is_called_again(small, pretended, error):
    config = small()
    pretended.stop = error
    with pytest.raises(type(error)):
        sweep(config)
    # As after a kill: Optuna has a trial that nobody runs.
    assert recorded(config.output_dir) == {(0.1, 0.0): ("RUNNING", None)}
    pretended.stop = None
    pretended.made()
    sweep(config)
    assert pretended.calls[0].resume == "last"
    assert pretended.made() == [("svhn", (0.1, 0.0)), ("svhn", (0.01, 0.0)), ("svhn", 42), ("svhn", 44)]
    assert recorded(config.output_dir) == {(0.1, 0.0): ("COMPLETE", 0.5), (0.01, 0.0): ("COMPLETE", 0.5)}


def test_a_run_that_ended_before_it_was_written_down_is_not_run_again(small, pretended):
    config = small()
    sweep(config)
    whole = recorded(config.output_dir)
    Path(config.output_dir, DATABASE).unlink()
    pretended.made()
    sweep(config)
    assert (pretended.made(), recorded(config.output_dir)) == ([], whole)


def test_a_damaged_database_is_said(small, pretended):
    config = small()
    sweep(config)
    Path(config.output_dir, DATABASE).write_bytes(b"not a database" * 100)
    with pytest.raises(FreqFormerError, match=r"cannot read .*sweep.db: .*; move it away"):
        sweep(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "test_vit2"}, "--encoder test_vit, and now test_vit2: choose another --output-dir"),
        ({"method": "bias"}, "--method linear, and now bias"),
        ({"freqfit": "ssf"}, "--freqfit none, and now ssf"),
        ({"epochs": 2}, "--epochs 1, and now 2"),
        ({"input_size": (32, 64)}, "--input-size 32, and now 32 64"),
        ({"lrs": [0.1, 1.0]}, "--lrs 0.1 0.01, of which 0.01 is now missing"),
        ({"seeds": [82]}, "--seeds 42 44, of which 42 44 are now missing"),
        ({"tasks": ["dtd"]}, "--tasks svhn, of which svhn is now missing"),
    ],
)
def test_another_sweep_in_the_folder_is_refused(small, pretended, changes, message):
    config = small()
    sweep(config)
    before = {path: path.read_bytes() for path in Path(config.output_dir).rglob("*") if path.is_file()}
    with pytest.raises(FreqFormerError, match=message):
        sweep(small(**changes))
    assert before == {path: path.read_bytes() for path in Path(config.output_dir).rglob("*") if path.is_file()}


def test_a_sweep_may_grow(small, pretended):
    sweep(small())
    pretended.made()
    sweep(small(tasks=["dtd", "svhn"], seeds=[44, 82, 42], num_workers=1, keep="metrics"))
    assert pretended.made() == [
        *[("dtd", (0.1, 0.0)), ("dtd", (0.01, 0.0)), ("dtd", 44), ("dtd", 82), ("dtd", 42)],
        ("svhn", 82),
    ]
    with pytest.raises(FreqFormerError, match="of which 82 is now missing"):
        sweep(small(tasks=["dtd", "svhn"]))


def test_a_larger_grid_may_have_another_best_setting(small, pretended):
    sweep(small())
    pretended.made()
    pretended.scores = {Setting(1.0, 0.0): 0.75, 42: 0.25}
    grown = small(lrs=[1.0, 0.1, 0.01])
    assert sweep(grown)["tasks"]["svhn"]["top1"] == {42: 0.25, 44: 0.5}
    assert pretended.made() == [("svhn", (1.0, 0.0)), ("svhn", 42), ("svhn", 44)]
    # What is no longer reported is not lost.
    aside = Path(grown.output_dir, "svhn/superseded/lr0.01_wd0.0")
    assert {path.name for path in aside.iterdir()} == {"42", "44"}
    assert {row["lr"] for row in table(grown.output_dir)} == {"1.0"}


def test_groups(small, pretended):
    config = small(tasks=["svhn", "dtd", "eurosat", "kitti", "DIGITS"], batch_size=2)
    rng = random.Random(0)
    pretended.scores = {(task, seed): rng.random() for task in config.tasks for seed in (42, 44)}
    results = sweep(config)
    top1 = {(row["task"], int(row["seed"])): float(row["top1"]) for row in table(config.output_dir)}
    assert top1 == pretended.scores
    groups = {"Natural": ["svhn", "dtd"], "Specialised": ["eurosat"], "Structured": ["kitti"], "Other": ["DIGITS"]}
    by_seed = {
        group: [fmean(top1[task, seed] for task in tasks) for seed in (42, 44)] for group, tasks in groups.items()
    }
    by_seed["mean of the groups"] = [fmean(by_seed[group][i] for group in list(groups)[:3]) for i in (0, 1)]
    by_seed["mean of the tasks"] = [fmean(top1[task, seed] for task in config.tasks) for seed in (42, 44)]
    page = Path(config.output_dir, "results.md").read_text()
    for name, values in by_seed.items():
        assert results["means"][name] == {
            "mean": pytest.approx(fmean(values)),
            "std": pytest.approx(stdev(values)),
            "seeds": 2,
        }
        figures = f"{100 * fmean(values):.2f} ± {100 * stdev(values):.2f} | 2 |"
        assert any(
            line.startswith(f"| {name.removeprefix('mean of ')} | ") and line.endswith(figures)
            for line in page.splitlines()
        )
    assert [line.split()[1] for line in page.splitlines() if line.startswith("| ") and "± " in line][:5] == config.tasks


def test_means_are_of_the_seeds_that_all_have():
    assert averaged([{1: 0.0, 2: 1.0, 3: 1.0}, {3: 0.5, 1: 1.0}]) == {1: 0.5, 3: 0.75}
    assert averaged([]) == {}
    assert means([TaskResult("svhn", None, 0, ())]) == {}


def test_all_means_vtabs_nineteen():
    assert SweepConfig(tasks=["all", "DIGITS", "vtab:dtd"]).tasks == [*VTAB_TASKS, "DIGITS"]


@pytest.mark.parametrize(("method", "rates"), [("lora", (50.0, 0.05, 10)), ("full", (0.005, 0.0001, 4))])
def test_default_rates(method, rates):
    config = SweepConfig(tasks=["all"], method=method)
    config.check()
    assert (config.lrs[0], config.lrs[-1], len(config.lrs)) == rates
    assert (config.weight_decays, config.seeds) == ([0.01, 0.001, 0.0001, 0.0], [42, 44, 82, 100, 800])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "--tasks must be one or more data sets"),
        ({"tasks": ["svnh"]}, "unknown data set 'svnh': did you mean svhn"),
        ({"tasks": ["svhn", "cifar100"]}, "cifar100: none of "),
        ({"tasks": ["hf:a/b", "hf:a-b"]}, "names of different folders"),
        ({"data_path": None}, "give --data-path"),
        ({"batch_size": 17}, "svhn: the 16 images of train800 are fewer than one batch"),
        ({"lrs": [-1.0]}, "--lrs must be 0 or more"),
        ({"lrs": [float("nan")]}, "--lrs must be 0 or more"),
        ({"weight_decays": []}, "--weight-decays must be one or more"),
        ({"keep": "some"}, "--keep must be all, adapters, metrics"),
        ({"num_nodes": 2}, "--num-nodes must be 1"),
        ({"resume": "last"}, "holds no sweep to resume"),
        ({"resume": "x.ckpt"}, "--resume must be without a value"),
        ({"epochs": 0}, "--epochs must be at least 1"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_made(small, pretended, changes, message):
    config = small(**changes)
    with pytest.raises(FreqFormerError, match=message):
        sweep(config)
    assert not Path(config.output_dir).exists()


def test_wrong_use_that_a_run_finds_stops_the_sweep(small):
    with pytest.raises(FreqFormerError, match="nonsense"):
        sweep(small(method="nonsense"))


def test_a_folder_of_something_else_is_refused(small, pretended, tmp_path):
    config = small()
    Path(config.output_dir).mkdir()
    Path(config.output_dir, "config.yaml").write_text("arch: test_freqformer\n")
    with pytest.raises(FreqFormerError, match="holds a run that is no sweep"):
        sweep(config)
    (tmp_path / "file").touch()
    with pytest.raises(FreqFormerError, match="is not a folder"):
        sweep(small(output_dir=str(tmp_path / "file")))


def test_optuna_is_an_extra(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"pip install 'freqformer\[adapt\]'"):
        sweep(small())


def test_a_launcher_is_refused(small, pretended, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FreqFormerError, match="torchrun has started 2 processes, but a sweep starts those"):
        sweep(small())


HOLD = """
import sys
from pathlib import Path
from freqformer.engine.sweep.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_two_sweeps_in_one_folder(small, pretended):
    config = small()
    holder = [sys.executable, "-c", HOLD, config.output_dir]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FreqFormerError, match=rf"another sweep is running in .* \(process {process.pid} on "):
            sweep(config)
        process.kill()
        process.wait()
    # Its file is still there.
    assert Path(config.output_dir, LOCK).read_text().startswith(str(process.pid))
    sweep(config)
    assert Path(config.output_dir, LOCK).read_text() == ""


def test_a_lock_is_freed_by_an_error(tmp_path):
    def fail():
        with locked(tmp_path):
            assert (tmp_path / LOCK).read_text().split()[0] == str(os.getpid())
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()


@pytest.mark.parametrize(("number", "asked"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 1)])
def test_a_signal_between_two_runs(small, pretended, monkeypatch, number, asked):
    def stopped():
        os.kill(os.getpid(), number)
        time.sleep(5)

    config, requests = small(), []
    monkeypatch.setattr(signals, "requeue", lambda: requests.append(1))
    monkeypatch.setattr(protocol.gc, "collect", stopped)
    with pytest.raises(Interrupted, match="; continue with --resume") as stop:
        sweep(config)
    assert (stop.value.exit_code, len(requests), len(pretended.made())) == (128 + number, asked, 1)


def test_slurm_is_asked_once_for_a_signal_within_a_run(small, signal_at, monkeypatch):
    requests = []
    monkeypatch.setattr(signals, "requeue", lambda: requests.append(1))
    signal_at(1, signal.SIGUSR1)
    with pytest.raises(Interrupted):
        sweep(small())
    assert len(requests) == 1


@pytest.fixture
def real(small):
    """A sweep that trains, in miniature: FreqFit beside LoRA, two epochs, two states saved within each."""

    def make(**changes):
        settings = {
            "method": "lora",
            "freqfit": "filter2d",
            "epochs": 2,
            "save_every_minutes": 1e-6,
            "lrs": [1.0, 0.01],
        }
        return small(**{**settings, **changes})

    return make


def left(config):
    """What a sweep leaves that must not depend on when it was stopped."""
    folder = Path(config.output_dir)
    kept = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            kept[name] = path.read_bytes()
        elif path.name == "metrics.json":
            metrics = json.loads(path.read_text())
            for row in (metrics, metrics["best"], *metrics["epochs"]):
                for key in ("seconds", "train_seconds", "images_per_second"):
                    row.pop(key, None)
            kept[name] = json.dumps(metrics)
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in table(folder)]
    tasks = {task: recorded(folder, task) for task in config.tasks}
    return {**kept, "rows": rows, "page": (folder / "results.md").read_text(), "trials": tasks}


def differences(one, other):
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


@pytest.mark.slow
def test_stopped_by_signals_it_ends_as_if_it_had_not_been(real, tmp_path, signal_at):
    whole = real(output_dir=str(tmp_path / "whole"))
    sweep(whole)
    config = real()
    # An epoch of a trial has 4 steps, one of a final run 5.
    for step, number in ((5, signal.SIGTERM), (1, signal.SIGINT), (6, signal.SIGUSR1), (10, signal.SIGTERM)):
        disarm = signal_at(step, number)
        with pytest.raises(Interrupted) as stop:
            sweep(config)
        assert stop.value.exit_code == 128 + number
        disarm()
    sweep(config)
    assert differences(left(whole), left(config)) == []
    assert len(left(config)["rows"]) == 2


KILLS = 4


@pytest.mark.slow
def test_kills_at_random_moments_change_no_bit(real, tmp_path):
    changes = {"tasks": ["kitti"], "num_workers": 2}
    whole = real(output_dir=str(tmp_path / "whole"), **changes)
    started = time.monotonic()
    sweep(whole)
    length = time.monotonic() - started
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    config = real(**changes)
    written = tmp_path / "sweep.yaml"
    written.write_text(yaml.safe_dump(config.settings()))
    line = [sys.executable, "-m", "freqformer", "adapt", "sweep", "--config", str(written), "--recipe", "none"]
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    for _ in range(KILLS):
        with subprocess.Popen(line, start_new_session=True, **outputs) as process:
            first = process.stdout.readline()
            time.sleep(moments.uniform(0, 2 * length / KILLS))
            os.killpg(process.pid, signal.SIGKILL)
            said = first + process.stdout.read()
        assert process.returncode in (0, -signal.SIGKILL), (seed, said)
        assert said.startswith("Sweep: 1 task,"), (seed, said)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), seed
    assert differences(left(whole), left(config)) == [], seed
    assert list(Path(config.output_dir).rglob("*.tmp")) == []


@pytest.mark.slow
def test_the_command_line(data, command, refused, tmp_path):
    folder = tmp_path / "sweep"
    words = "--encoder test_vit --no-pretrained --input-size 32 --method lora --peft.r 2 --freqfit filter2d_real"
    more = (
        "--epochs 1 --batch-size 8 --num-workers 0 --accelerator cpu --tasks svhn kitti --lrs 0.5 --weight-decays 0.01"
    )
    words = ["adapt", "sweep", data, *words.split(), *more.split(), "--seeds", 42, 44, "--output-dir", folder]
    answer = command(*words)
    assert (answer.code, answer.err) == (0, "")
    assert "defaults of the recipe freqfit_vtab:" in answer.out
    assert "kitti: trial 1 of 1, lr 0.5, weight decay 0.01: validation top-1 " in answer.out
    assert "; left: 0 trials and 0 final runs\n" in answer.out
    shown = [line.split("  ")[0] for line in answer.out.splitlines()[-5:]]
    assert shown == ["svhn", "kitti", "Natural", "Structured", "mean of the tasks"]
    config = yaml.safe_load((folder / "svhn/seeds/42/config.yaml").read_text())
    assert (config["opt"], config["resize"], config["decay_all"], config["peft"]) == ("sgd", "squash", True, {"r": 2})
    metrics = json.loads((folder / "svhn/seeds/42/metrics.json").read_text())
    row = table(folder)[0]
    assert (float(row["top1"]), int(row["epochs"])) == (metrics["epochs"][-1]["val/top1"], 1)
    assert int(row["trained_parameters"]) == metrics["trained_parameters"]
    assert {path.name for path in (folder / "svhn/seeds/42/adapters").iterdir()} == {"linear", "lora", "filter2d_real"}
    # The same line again, and the folder alone, have nothing left to do.
    for again in (words, ["adapt", "sweep", "--resume", "--output-dir", folder]):
        answer = command(*again)
        assert (answer.code, "trial" in answer.out.partition("Sweep:")[2].partition("best are")[0]) == (0, False)
    assert "--method lora, and now bias" in refused(*words, "--method", "bias")


@pytest.mark.parametrize(
    ("flag", "advice"),
    [
        ("--lr", "--lr is no flag of a sweep: give --lrs"),
        ("--data_set=svhn", "--data-set is no flag of a sweep: give --tasks"),
        ("--overwrite", "choose another --output-dir"),
    ],
)
def test_flags_that_a_sweep_has_others_for(refused, flag, advice):
    assert advice in refused("adapt", "sweep", "--tasks", "svhn", flag)


def test_the_helps(command):
    assert "--lrs" in command("adapt", "sweep", "--help").out
    assert "freqformer adapt sweep" in command("adapt", "--help").out


def test_a_recipe_is_implied_for_vtab_alone(small, pretended, data, class_folders, command):
    common = ["--encoder", "test_vit", "--lrs", 1, "--weight-decays", 0, "--seeds", 42, "--num-workers", 0]

    def chosen(name, *words):
        folder = data / name
        answer = command("adapt", "sweep", *common, "--batch-size", 4, "--output-dir", folder, *words)
        assert answer.code == 0, answer.err
        return yaml.safe_load((folder / "config.yaml").read_text())["opt"]

    assert chosen("a", "--data-path", data, "--tasks", "vtab:svhn") == "sgd"
    assert chosen("b", "--data-path", data, "--tasks", "svhn", "--recipe", "none") == "adamw"
    root = class_folders(train=12)
    pretended.made()
    assert chosen("c", "--data-path", root, "--tasks", "FOLDER", "DIGITS") == "adamw"
    splits = [(call.data_set, call.train_split, call.val_split) for call in pretended.calls]
    assert splits == [
        *[("FOLDER", "train80", "train20"), ("FOLDER", "train", "val")],
        *[("DIGITS", "train80", "train20"), ("DIGITS", "train", "val")],
    ]


@pytest.mark.slow
def test_class_folders_and_digits(real, class_folders):
    config = real(
        tasks=["FOLDER", "DIGITS"], data_path=str(class_folders(train=12)), limit_train=40, epochs=1, lrs=[0.1]
    )
    results = sweep(config)
    assert results["complete"]
    assert {row["group"] for row in table(config.output_dir)} == {"Other"}


@pytest.mark.slow
def test_a_loss_that_explodes_in_earnest(real):
    config = real(opt="sgd", lrs=[1e30, 0.01], clip_grad=None)
    results = sweep(config)
    assert recorded(config.output_dir)[1e30, 0.0] == ("FAIL", None)
    assert (results["tasks"]["svhn"]["lr"], results["complete"]) == (0.01, True)


@pytest.mark.slow
def test_two_processes_a_run(real):
    results = sweep(real(devices=2, epochs=1, lrs=[0.1], seeds=[42], batch_size=2))
    assert results["complete"]
