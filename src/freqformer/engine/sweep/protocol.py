"""The sweep itself: trials of every setting, then the best one with every seed, resumable at any moment."""

import gc
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ...checkpoints import CONFIG_FILE, WEIGHTS_FILE, write_whole
from ...data import SweepSplits, open_images, sweep_splits
from ...errors import FreqFormerError
from ...launchers import only_the_first_complains, place
from ...tasks import AdaptationConfig
from ...tasks.adaptation import ADAPTERS
from ..failures import LossIsNoNumber
from ..runner import RESUME_LAST, run
from ..signals import Interrupted, StopOnSignal, requeue_once
from ..storage import AVERAGE_WEIGHTS, CHECKPOINTS, CONFIG, RAW_WEIGHTS, remove
from .config import Setting, SweepConfig, difference, task_folder
from .lock import locked
from .report import write_report
from .results import (
    SEEDS,
    TRIALS,
    TaskResult,
    collect,
    finished_metrics,
    last_top1,
    means,
    score,
    seconds_of,
    setting_of,
)
from .trials import DATABASE, begin, best, end, is_over, require_optuna, studies, trials_of

if TYPE_CHECKING:
    from optuna import Study

# Seeds' runs of a setting that is no longer the best, since the grid has grown.
_SUPERSEDED = "superseded"
_WHY = "failed.txt"
_WHOLE = (CHECKPOINTS, WEIGHTS_FILE, CONFIG_FILE, RAW_WEIGHTS, AVERAGE_WEIGHTS)
_THROWN_AWAY = {"all": (), "adapters": _WHOLE, "metrics": (*_WHOLE, ADAPTERS)}


@dataclass
class _Sweep:
    """A sweep under way."""

    config: SweepConfig
    folder: Path
    splits: dict[str, SweepSplits]
    studies: Mapping[str, "Study"]

    def trial(self, task: str, setting: Setting) -> AdaptationConfig:
        """The run that tries a setting."""
        splits = self.splits[task]
        folder = self.folder / task_folder(task) / TRIALS / setting.folder
        return self.config.run(task, (splits.tune_train, splits.tune_val), setting, self.config.seed, folder)

    def final(self, task: str, setting: Setting, seed: int) -> AdaptationConfig:
        """The run of a seed with the best setting."""
        splits = self.splits[task]
        folder = self.folder / task_folder(task) / SEEDS / str(seed)
        return self.config.run(task, (splits.final_train, splits.final_val), setting, seed, folder)

    def left(self) -> str:
        """What there is still to do, in words."""
        grid = self.config.grid()
        trials = len(self.config.tasks) * len(grid)
        for study in self.studies.values():
            # At once: each look at a study reads its trials.
            states = trials_of(study)
            trials -= sum(setting in states and states[setting].state.is_finished() for setting in grid)
        folders = [self.folder / task_folder(task) / SEEDS for task in self.config.tasks]
        finals = sum(finished_metrics(folder / str(seed)) is None for folder in folders for seed in self.config.seeds)
        return f"left: {_number(trials, 'trial')} and {_number(finals, 'final run')}"


def sweep(config: SweepConfig) -> dict[str, Any]:
    """Tune each task's learning rate and weight decay, then train with the best ones and several seeds.

    Called again on the same folder it goes on where it was stopped, and ends as if it had not been.

    Args:
        config: the tasks, the grid, the seeds, and what every run has.

    Returns:
        ``tasks``, for each its ``group``, ``lr``, ``weight_decay``, ``validation_top1``, ``failed_trials``, ``top1`` by
        seed, their ``mean`` and ``std`` (shares; None where there is none) and the number of ``seeds``; ``means`` over
        groups and tasks, each with ``mean``, ``std`` and ``seeds``; ``complete``, whether every task has every seed,
        which it lacks where losses became no numbers.

    Raises:
        FreqFormerError: unusable settings or data, or a folder that holds another sweep or is in use.
        MissingExtra: Optuna is not installed.
        Interrupted: a signal stopped it; what was done is kept.
    """
    with only_the_first_complains():
        require_optuna()
        config.check()
        if (here := place()) is not None:
            raise FreqFormerError(
                f"{here.launcher} has started {here.size} processes, but a sweep starts those of its runs itself: call "
                "it once, with --devices"
            )
    folder = Path(config.output_dir or config.default_output_dir())
    print(
        f"Sweep: {_number(len(config.tasks), 'task')}, {_number(len(config.grid()), 'setting')} and "
        f"{_number(len(config.seeds), 'seed')} each, folder {folder}",
        flush=True,
    )
    splits = {task: _require_data(config, task) for task in config.tasks}
    try:
        # Nothing is made in a folder that is refused; what lies there may change until it is locked.
        _settings(folder, config)
        with locked(folder), StopOnSignal(folder / DATABASE).watching():
            text = _settings(folder, config)
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink()
            write_whole(folder / CONFIG, lambda path: path.write_text(text))
            with studies(folder / DATABASE, config.tasks) as opened:
                return _go_through(_Sweep(config, folder, splits, opened))
    except Interrupted as stopped:
        # Between two runs nobody else asks.
        requeue_once(stopped)
        raise


def _require_data(config: SweepConfig, task: str) -> SweepSplits:
    """A task's splits, all of which have to be there before the first of all runs begins."""
    splits = sweep_splits(task, config.data_path)
    for train, val in ((splits.tune_train, splits.tune_val), (splits.final_train, splits.final_val)):
        images = open_images(task, config.data_path, train, limit=config.limit_train)
        open_images(task, config.data_path, val, classes=images.classes)
        if len(images) < config.batch_size:
            raise FreqFormerError(
                f"{task}: the {len(images)} images of {train} are fewer than one batch: lower --batch-size"
            )
    return splits


def _settings(folder: Path, config: SweepConfig) -> str:
    """What the folder's ``config.yaml`` is to hold; a folder that holds something else is refused."""
    path = folder / CONFIG
    text = yaml.safe_dump({**config.settings(), "output_dir": str(folder)}, sort_keys=False)
    if path.exists():
        before = yaml.safe_load(path.read_text())
        if not isinstance(before, dict) or "tasks" not in before:
            raise FreqFormerError(f"{folder} holds a run that is no sweep: choose another --output-dir")
        if changed := difference(before, yaml.safe_load(text)):
            raise FreqFormerError(f"{folder} holds a sweep with {changed}: choose another --output-dir")
    elif config.resume is not None:
        raise FreqFormerError(f"{folder} holds no sweep to resume: check --output-dir, or leave out --resume")
    return text


def _go_through(sweep: _Sweep) -> dict[str, Any]:
    """Every task in turn: its trials, then its seeds."""
    report = _report(sweep)
    for task in sweep.config.tasks:
        _search(sweep, task)
        found = best(sweep.studies[task])
        if found is None:
            print(f"{task}: every trial has failed, so there is no setting to go on with", flush=True)
            continue
        print(f"{task}: best are {found.setting} (validation top-1 {100 * found.score:.2f}%)", flush=True)
        report = _repeat(sweep, task, found.setting)
    summary = _summary(report)
    finals = len(sweep.config.tasks) * len(sweep.config.seeds)
    return {**summary, "complete": sum(len(result.runs) for result in report) == finals}


def _search(sweep: _Sweep, task: str) -> None:
    """Try every setting that has not been tried."""
    study, grid = sweep.studies[task], sweep.config.grid()
    for number, setting in enumerate(grid, 1):
        config = sweep.trial(task, setting)
        assert config.output_dir is not None
        folder, name = Path(config.output_dir), f"{task}: trial {number} of {len(grid)}, {setting}"
        if not is_over(study, setting) and (folder / _WHY).is_file():
            # The study was lost; this trial had failed.
            begin(study, setting)
            end(study, setting, None)
        if not is_over(study, setting):
            print(name, flush=True)
            begin(study, setting)
            try:
                metrics = _run(config)
            except LossIsNoNumber as error:
                why = _reason(error)
                (folder / _WHY).write_text(f"{why}\n")
                end(study, setting, None)
                print(f"{name}: failed, {why}; {sweep.left()}", flush=True)
            else:
                end(study, setting, last_top1(metrics))
                print(
                    f"{name}: validation top-1 {100 * last_top1(metrics):.2f}%, {seconds_of(metrics):.1f} s; "
                    f"{sweep.left()}",
                    flush=True,
                )
        remove(folder, _THROWN_AWAY["metrics"])


def _repeat(sweep: _Sweep, task: str, setting: Setting) -> list[TaskResult]:
    """Train with the best setting and every seed."""
    finals = {seed: sweep.final(task, setting, seed) for seed in sweep.config.seeds}
    for config in finals.values():
        _put_aside(config, setting)
    report = _report(sweep)
    for seed, config in finals.items():
        assert config.output_dir is not None
        folder, name = Path(config.output_dir), f"{task}: seed {seed}, {setting}"
        if finished_metrics(folder) is None:
            print(name, flush=True)
            try:
                metrics = _run(config)
            except LossIsNoNumber as error:
                print(f"{name}: failed, {_reason(error)}; {sweep.left()}", flush=True)
                continue
            report = _report(sweep)
            print(
                f"{name}: top-1 {100 * last_top1(metrics):.2f}%, {seconds_of(metrics):.1f} s; {sweep.left()}",
                flush=True,
            )
        remove(folder, _THROWN_AWAY[sweep.config.keep])
    return report


def _run(config: AdaptationConfig) -> dict[str, Any]:
    """Begin a run, go on with it, or take what it has left."""
    folder = Path(str(config.output_dir))
    metrics = finished_metrics(folder)
    if metrics is None:
        metrics = run(replace(config, resume=RESUME_LAST if (folder / CONFIG).exists() else None))
        # Hooks and trainers refer to each other; the next run needs their memory.
        gc.collect()
    return metrics


def _put_aside(config: AdaptationConfig, setting: Setting) -> None:
    """Move a seed's run of another setting out of the way: the grid has grown, and the best is another."""
    folder = Path(str(config.output_dir))
    before = setting_of(folder)
    if before is None or before == setting:
        return
    target = folder.parent.parent / _SUPERSEDED / before.folder / folder.name
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(folder, target)
    print(f"{folder}: was for {before}, and is now {target}", flush=True)


def _reason(error: LossIsNoNumber) -> str:
    """What happened; how to go on with a run is not for one whose checkpoints are thrown away."""
    return str(error).partition(";")[0]


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _report(sweep: _Sweep) -> list[TaskResult]:
    results = collect(sweep.config, sweep.folder, sweep.studies)
    write_report(sweep.config, sweep.folder, results)
    return results


def _summary(results: list[TaskResult]) -> dict[str, Any]:
    tasks = {}
    for result in results:
        found = score(result.by_seed)
        setting = result.runs[0].setting if result.runs else None
        tasks[result.task] = {
            "group": result.group,
            "lr": setting.lr if setting else None,
            "weight_decay": setting.weight_decay if setting else None,
            "validation_top1": result.validation_top1,
            "failed_trials": result.failed_trials,
            "top1": result.by_seed,
            "mean": found.mean if found else None,
            "std": found.std if found else None,
            "seeds": len(result.runs),
        }
    averages = {
        name: {"mean": found.mean, "std": found.std, "seeds": found.seeds} for name, found in means(results).items()
    }
    return {"tasks": tasks, "means": averages}
