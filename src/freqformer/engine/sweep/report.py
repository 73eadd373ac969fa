"""A sweep's results as a table of runs, a page and a picture."""

import csv
from pathlib import Path

from matplotlib.figure import Figure

from ...checkpoints import write_whole
from ...report.folder import REPORT
from ...report.sweep import PICTURE, TABLE, write_sweep
from .config import SweepConfig
from .results import GROUPS, OTHER, TaskResult, means, score

_COLUMNS = ("task", "group", "seed", "lr", "weight_decay", "top1", "epochs", "trained_parameters", "seconds")
_COLOURS = {"Natural": "tab:green", "Specialised": "tab:orange", "Structured": "tab:blue", OTHER: "tab:gray"}


def write_report(config: SweepConfig, folder: Path, results: list[TaskResult]) -> None:
    """Write ``results.csv``, ``results.md``, ``results.png`` and ``report.html``.

    Raises:
        FreqFormerError: they cannot be written.
    """
    write_whole(folder / "results.csv", lambda path: _write_csv(path, results))
    text = page(config, results)
    write_whole(folder / TABLE, lambda path: path.write_text(text, encoding="utf-8"))
    if any(result.runs for result in results):
        write_whole(folder / PICTURE, lambda path: _draw(path, results))
    write_sweep(folder, folder / REPORT)


def _write_csv(path: Path, results: list[TaskResult]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for result in results:
            for run in result.runs:
                lr, weight_decay = run.setting
                row = [result.task, result.group, run.seed, lr, weight_decay, run.top1]
                writer.writerow([*row, run.epochs, run.trained_parameters, round(run.seconds, 2)])


def page(config: SweepConfig, results: list[TaskResult]) -> str:
    """The page: a row a task, the means, and how they came about."""
    runs = sum(len(result.runs) for result in results)
    freqfit = "" if config.freqfit == "none" else f" with {config.freqfit}"
    lines = [
        f"# {config.method}{freqfit} on {config.encoder}",
        "",
        f"Top-1 accuracy in % of the last epoch on the evaluation split: mean ± sample standard deviation over n seeds "
        f"({_listed(config.seeds)}). {runs} of {len(results) * len(config.seeds)} runs are done.",
        "",
        "| task | group | top-1 | n | learning rate | weight decay | validation top-1 | failed trials |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(result) for result in results),
        "",
        "| mean of | tasks | top-1 | n |",
        "|---|---|---|---|",
    ]
    for name, found in means(results).items():
        members = [result for result in results if name not in GROUPS or result.group == name]
        if name == "mean of the groups":
            members = [result for result in members if result.group != OTHER]
        done = sum(bool(result.runs) for result in members)
        lines.append(f"| {name.removeprefix('mean of ')} | {done} of {len(members)} | {found} | {found.seeds} |")
    lines += [
        "",
        f"Each task's setting had the best top-1 of the last epoch on the validation split among {len(config.grid())} "
        f"(learning rates {_listed(config.lrs)}; weight decays {_listed(config.weight_decays)}; of equal ones the "
        "smallest learning rate); the final runs then trained on the training and validation images together. The "
        "last epoch counts, not the best one: that would be chosen on the split that is reported. Means over tasks are "
        "taken seed by seed, over the seeds that all of them have.",
        "",
    ]
    return "\n".join(lines)


def _row(result: TaskResult) -> str:
    found = score(result.by_seed)
    validation = "–" if result.validation_top1 is None else f"{100 * result.validation_top1:.2f}"
    setting = result.runs[0].setting if result.runs else None
    lr, decay = ("–", "–") if setting is None else (f"{setting.lr:g}", f"{setting.weight_decay:g}")
    cells = [result.task, result.group, found or "–", len(result.runs), lr, decay, validation, result.failed_trials]
    return f"| {' | '.join(map(str, cells))} |"


def _draw(path: Path, results: list[TaskResult]) -> None:
    """Bars of the tasks, group by group, with each group's mean as a line across."""
    done = [result for group in GROUPS for result in results if result.group == group and result.runs]
    figure = Figure(figsize=(max(5.0, 2.2 + 0.62 * len(done)), 4.6), layout="constrained")
    axes = figure.subplots()
    places: dict[str, list[float]] = {}
    at = 0.0
    for result in done:
        if places and result.group not in places:
            at += 0.6
        found = score(result.by_seed)
        assert found is not None
        top = 100 * found.mean
        error = None if found.std is None else [100 * found.std]
        axes.bar(at, top, 0.8, yerr=error, capsize=3, color=_COLOURS[result.group], alpha=0.8, edgecolor="none")
        axes.text(at, 1.0, f"{top:.1f}", ha="center", va="bottom", fontsize=8, color="white", fontweight="bold")
        places.setdefault(result.group, []).append(at)
        at += 1.0
    found_means = means(results)
    for group, positions in places.items():
        if (mean := found_means.get(group)) is None:
            continue
        ends = [positions[0] - 0.45, positions[-1] + 0.45]
        label = f"{group}: {mean}"
        axes.plot(ends, [100 * mean.mean] * 2, color=_COLOURS[group], linestyle="--", linewidth=1.2, label=label)
    axes.set_xticks([place for positions in places.values() for place in positions])
    axes.set_xticklabels([result.task for result in done], rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_ylabel("top-1 (%)")
    axes.set_ylim(0, 103)
    axes.margins(x=0.02)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130, format="png")


def _listed(values: list) -> str:
    return ", ".join(f"{value:g}" for value in values)
