"""What a sweep has found so far, read from the folders of its runs."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import yaml

from ...data import VTAB_GROUPS, VTAB_TASKS
from ..storage import CONFIG, METRICS
from .config import Setting, SweepConfig, task_folder
from .trials import best, failures

if TYPE_CHECKING:
    from optuna import Study

# A report reads every run's config; libyaml does it ten times as fast, where it is there.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

TRIALS, SEEDS = "trials", "seeds"
OTHER = "Other"
"""The group of data sets that are no task of VTAB."""
GROUPS = (*VTAB_GROUPS, OTHER)


@dataclass(frozen=True)
class FinalRun:
    """A finished run of one seed with a task's best setting, on the final splits."""

    seed: int
    setting: Setting
    top1: float
    """Of the last epoch: a share."""
    epochs: int
    trained_parameters: int
    seconds: float


@dataclass(frozen=True)
class TaskResult:
    """What is known of a task."""

    task: str
    validation_top1: float | None
    """Of the best trial; None while there is none."""
    failed_trials: int
    runs: tuple[FinalRun, ...]

    @property
    def group(self) -> str:
        """The group that it counts to."""
        return group_of(self.task)

    @property
    def by_seed(self) -> dict[int, float]:
        """The top-1 of each seed."""
        return {run.seed: run.top1 for run in self.runs}


@dataclass(frozen=True)
class Score:
    """Mean and sample standard deviation over seeds; one seed has no deviation."""

    mean: float
    std: float | None
    seeds: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f}" + ("" if self.std is None else f" ± {100 * self.std:.2f}")


def group_of(task: str) -> str:
    """VTAB's group of a task, or that of all others."""
    return VTAB_TASKS[task].group if task in VTAB_TASKS else OTHER


def collect(config: SweepConfig, folder: Path, studies: Mapping[str, "Study"]) -> list[TaskResult]:
    """The results so far, of every task."""
    results = []
    for task in config.tasks:
        found = best(studies[task])
        runs = [read_run(folder / task_folder(task) / SEEDS / str(seed), seed) for seed in config.seeds]
        score = None if found is None else found.score
        results.append(TaskResult(task, score, failures(studies[task]), tuple(run for run in runs if run is not None)))
    return results


def read_run(folder: Path, seed: int) -> FinalRun | None:
    """A seed's run, if it has come to its end."""
    metrics = finished_metrics(folder)
    setting = setting_of(folder)
    if metrics is None or setting is None:
        return None
    return FinalRun(
        seed=seed,
        setting=setting,
        top1=last_top1(metrics),
        epochs=len(metrics["epochs"]),
        trained_parameters=metrics["trained_parameters"],
        seconds=seconds_of(metrics),
    )


def finished_metrics(folder: Path) -> dict[str, Any] | None:
    """What a run has left when it came to its end; None before that."""
    path = folder / METRICS
    if not path.is_file():
        return None
    metrics = json.loads(path.read_text())
    return metrics if "best" in metrics else None


def setting_of(folder: Path) -> Setting | None:
    """The setting that a run's folder was made for; None where there is no run."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    config = yaml.load(path.read_text(), _LOADER)
    return Setting(config["lr"], config["weight_decay"])


def last_top1(metrics: Mapping[str, Any]) -> float:
    """The top-1 of a run's last epoch, a share; its best epoch would be chosen by what is to be measured."""
    return metrics["epochs"][-1]["val/top1"]


def seconds_of(metrics: Mapping[str, Any]) -> float:
    """What a run's epochs took, whatever came between them."""
    return sum(row["seconds"] for row in metrics["epochs"])


def averaged(series: Iterable[Mapping[int, float]]) -> dict[int, float]:
    """The mean of several tasks' values for each seed that all of them have."""
    values = list(series)
    seeds = [seed for seed in values[0] if all(seed in one for one in values)] if values else []
    return {seed: fmean(one[seed] for one in values) for seed in seeds}


def score(series: Mapping[int, float]) -> Score | None:
    """Mean and deviation over the seeds; None without one."""
    values = list(series.values())
    return Score(fmean(values), stdev(values) if len(values) > 1 else None, len(values)) if values else None


def by_group(results: Iterable[TaskResult]) -> dict[str, dict[int, float]]:
    """The mean of each group's tasks by seed, of those groups and tasks that have results."""
    done = [result for result in results if result.runs]
    groups = {group: [result.by_seed for result in done if result.group == group] for group in GROUPS}
    return {group: averaged(series) for group, series in groups.items() if series}


def means(results: list[TaskResult]) -> dict[str, Score]:
    """The scores of each group, of the three groups of VTAB where all are there, and of all tasks."""
    groups = by_group(results)
    series = dict(groups)
    if all(group in groups for group in VTAB_GROUPS):
        series["mean of the groups"] = averaged(groups[group] for group in VTAB_GROUPS)
    series["mean of the tasks"] = averaged(result.by_seed for result in results if result.runs)
    return {name: found for name, one in series.items() if (found := score(one)) is not None}
