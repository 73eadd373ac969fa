"""The page of a run: what came out, how it is repeated, and what there is to look at."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..pages import Code, Section, Table, Text, write_page
from ..tasks.extremes import CONFUSIONS
from .folder import EVALUATION, FILTERS, REPORT, Run, figure, read_run, scores
from .sweep import is_sweep, write_sweep

_RANKS = {
    "loss": ("the smallest loss", "the largest loss"),
    "F1": (
        "the largest F1 of their detections (of a score above 0.5, right from an IoU of 0.5)",
        "the smallest F1 of their detections",
    ),
    "mIoU": (
        "the largest mean IoU of the classes in their masks",
        "the smallest mean IoU of the classes in their masks",
    ),
}
# The columns of tables that are figures with a fraction, with or without the prefix mask_.
_FIGURES = ("accuracy", "IoU", "AP", "AP50", "probability", "loss", "F1", "mIoU")
# Tables of more rows are folded.
_LONG = 20


def write_report(folder: Path | str) -> Path:
    """Write a run's page, ``report.html``, of what lies in its folder.

    Args:
        folder: of a run, an evaluation or a sweep, of this version or an older one; what it lacks is left out.

    Returns:
        The page: one HTML file that needs nothing beside itself.

    Raises:
        FreqFormerError: the folder holds no run, or cannot be written into.
    """
    folder = Path(folder)
    target = folder / REPORT
    if is_sweep(folder):
        return write_sweep(folder, target)
    run = read_run(folder)
    parts = [
        _result(run),
        _again(run),
        *([] if run.is_evaluation else _curves(run)),
        *_classes(run),
        *_examples(run),
        _filters(run),
        _timing(run),
        *_settings(run),
        *_data(run),
        _environment(run),
    ]
    write_page(target, f"{run.command}: {folder.absolute().name}", parts)
    return target


def _result(run: Run) -> Section:
    parts: list[Any] = []
    if run.best_epoch is not None:
        parts.append(Text(f"Epoch {run.best_epoch} of {len(run.epochs)} is the best by {run.monitor}."))
    sets = run.sets
    if not sets:
        parts.append(Text(f"The run has not come to its end: {len(run.epochs)} epochs are done."))
        kept = [row for row in run.epochs if row["epoch"] == run.best_epoch] or run.epochs[-1:]
        sets = {
            f"epoch {row['epoch']}": {name.removeprefix("val/"): row[name] for name in row if "/" in name}
            for row in kept
        }
    names = list(dict.fromkeys(name for figures in sets.values() for name in scores(figures)))
    rows = [{"": name, **{what: figure(name, found.get(name)) for what, found in sets.items()}} for name in names]
    images = {what: found["images"] for what, found in sets.items() if "images" in found}
    if images:
        rows.append({"": "images", **{what: images.get(what) for what in sets}})
    counts = {"parameters": "parameters", "trained_parameters": "trained parameters"}
    said = [f"{run.metrics[name]:,} {words}" for name, words in counts.items() if name in run.metrics]
    return Section("Result", [*parts, Table(rows), *([Text(", ".join(said) + ".")] if said else [])])


def _again(run: Run) -> Section:
    parts: list[Any] = []
    if run.again is None:
        parts.append(Text(f"The command is not known: the evaluation is older than {EVALUATION}."))
    else:
        parts += [Text("This repeats it into the folder NEW:"), Code(run.again)]
    typed = list(dict.fromkeys(start["command"] for start in run.starts if start.get("command")))
    if typed:
        parts += [Text("As it was typed:"), Code("\n".join(typed))]
    return Section("The command", parts)


def _curves(run: Run) -> list[Section]:
    pictures = run.picture("curves.png", "Loss, scores and learning rate of each epoch.")
    rows = run.epochs
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table([{name: row.get(name) for name in names} for row in rows])
    return [
        Section("Curves", pictures or [Text("This run has left no curves.")]),
        Section("Every epoch", [table], folded=True),
    ]


def _classes(run: Run) -> list[Section]:
    pictures = [
        *run.picture("confusion.png", "Which classes are taken for which: shares of the true class, and images."),
        *run.picture("per_class.png", "The score of each class."),
    ]
    rows = [_rounded(row) for row in run.table("per_class.csv")]
    if not rows:
        rows = run.metrics.get("per_class", [])
    sections = [Section("Classes", pictures)] if pictures else []
    if pairs := run.table(CONFUSIONS):
        sections.append(Section("Which classes are taken for which most often", [Table(pairs)]))
    return [*sections, *([Section("Each class", [Table(rows)], folded=len(rows) > _LONG)] if rows else [])]


def _examples(run: Run) -> list[Section]:
    rows = [_rounded(row) for row in run.examples()]
    key = next((name for name in _RANKS if rows and name in rows[0]), None)
    best, worst = _RANKS[key] if key else ("the best score", "the worst score")
    pictures: list[Any] = [
        *run.picture("best.png", f"The images with {best}, the best first."),
        *run.picture("worst.png", f"The images with {worst}, the worst first."),
        *run.picture("predictions.png", "Some of the images."),
    ]
    if not (pictures or rows):
        pictures = [Text("This run has kept no predictions.")]
    sections = [Section("Best and worst predictions", pictures)]
    return [*sections, *([Section("Which images these are", [Table(rows)], folded=True)] if rows else [])]


def _filters(run: Run) -> Section:
    pictures: list[Any] = run.picture(FILTERS, "The learned filters of the spectral layers.")
    none = "There is no picture of filters: the model has none, or the run has not ended."
    return Section("Filters", pictures or [Text(none)])


def _timing(run: Run) -> Section:
    rows: list[dict[str, Any]] = []

    def add(what: str, value: str) -> None:
        rows.append({"": what, " ": value})

    if (pace := run.pace) is not None:
        add("epoch, with its evaluation", f"{pace.seconds:.2f} s")
        add(f"all {pace.epochs} epochs", f"{pace.total:.1f} s")
        if pace.images_per_second is not None:
            add("training, with evaluations", f"{pace.images_per_second:.1f} images/s")
    for what, found in run.sets.items():
        if "images_per_second" in found:
            add(f"evaluation, {what}", f"{found['seconds']:.1f} s, {found['images_per_second']:.1f} images/s")
    return Section("Timing", [Table(rows)] if rows else [Text("No time was taken.")])


def _settings(run: Run) -> list[Section]:
    if not run.settings:
        return [Section("Settings", [Text("They are not known.")])]
    changed = [{"setting": name, "value": str(run.settings[name])} for name in run.changed if name in run.settings]
    every = [{"setting": name, "value": str(value)} for name, value in run.settings.items()]
    return [
        Section("Settings other than the defaults", [Table(changed)] if changed else [Text("None.")]),
        Section("All settings", [Table(every)], folded=True),
    ]


def _data(run: Run) -> list[Section]:
    parts: list[Any] = []
    problems = run.metrics.get("data_problems") or {}
    # A run has those of each split, an evaluation those of its own.
    by_split = problems if all(isinstance(found, dict) for found in problems.values()) else {"": problems}
    rows = [
        {"split": split, "count": count, "what": what}
        for split, found in by_split.items()
        for what, count in found.items()
    ]
    if rows:
        parts += [Text("Of the annotations was dropped or mended:"), Table(rows)]
    bad = run.table("bad_images.csv")
    if bad:
        parts += [Text(f"{len(bad)} images could not be read:"), Table(bad)]
    left_out = max((found.get("bad_images", 0) for found in run.sets.values()), default=0)
    if left_out:
        parts.append(Text(f"The evaluation did without {left_out} images, which could not be read."))
    return [Section("Problems of the data", parts)] if parts else []


def _environment(run: Run) -> Section:
    if not run.starts:
        return Section("Environment", [Text(f"It is not known. {run.unknown}")])
    parts: list[Any] = []
    if len(run.starts) > 1:
        parts.append(Text(f"The run was started {len(run.starts)} times; a row is a start, the last one is the last."))
        names = list(dict.fromkeys(name for start in run.starts for name in start if name != "command"))
        return Section(
            "Environment", [*parts, Table([{name: start.get(name) for name in names} for start in run.starts])]
        )
    rows = [{"": name, " ": value} for name, value in run.starts[-1].items() if name != "command"]
    return Section("Environment", [Table(rows)])


def _rounded(row: Mapping[str, str]) -> dict[str, Any]:
    """A row of a CSV file with its figures as numbers, which a page rounds; a class may be called 2.10."""
    return {name: _number(text) if name.rpartition("_")[2] in _FIGURES else text or None for name, text in row.items()}


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text or None
