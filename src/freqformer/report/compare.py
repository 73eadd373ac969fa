"""Several runs on one page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FreqFormerError
from ..pages import Beside, Code, Section, Table, Text, picture_of, write_page
from .folder import FILTERS, OUTPUT, Run, figure, read_run, scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARK = " ★"
_PICTURES = {
    "confusion.png": "Confusion",
    "per_class.png": "Classes",
    "best.png": "Best predictions",
    "worst.png": "Worst predictions",
    FILTERS: "Filters",
}


def compare(folders: Sequence[Path | str], target: Path | str, *, overwrite: bool = False) -> Path:
    """Put several runs of one task on one page: figures, settings that differ, curves and pictures.

    Args:
        folders: of runs or evaluations.
        target: the HTML file to write.
        overwrite: replace an existing one.

    Returns:
        The page.

    Raises:
        FreqFormerError: fewer than two runs, runs of different tasks, a folder that holds none, or an existing target.
    """
    target = Path(target)
    # One folder may be spelt in several ways.
    places = [Path(folder) for folder in folders]
    if len({place.resolve() for place in places}) < max(2, len(places)):
        raise FreqFormerError("name at least two different runs to compare, each once")
    if not target.parent.is_dir():
        raise FreqFormerError(f"cannot write {target}: its folder does not exist")
    if target.exists() and not overwrite:
        raise FreqFormerError(f"{target} exists: choose another --output, or say --overwrite")
    runs = _named([read_run(folder) for folder in places])
    tasks = list(dict.fromkeys(run.task for run in runs.values()))
    if len(tasks) > 1:
        raise FreqFormerError(f"runs of {' and '.join(tasks)} have no figures in common: compare those of one task")
    sections = [_results(runs), _settings(runs), *_curves(runs)]
    for name, title in _PICTURES.items():
        pictures = [picture for what, run in runs.items() for picture in run.picture(name, what, width=1200)]
        if pictures:
            sections.append(Section(title, [Beside(pictures)]))
    sections.append(_commands(runs))
    write_page(target, f"{tasks[0].capitalize()}: {len(runs)} runs", sections)
    return target


def _named(runs: list[Run]) -> dict[str, Run]:
    """The runs by their folders' names, or by their paths where two have the same."""
    names = [run.folder.absolute().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    return dict(zip(names, runs, strict=True))


def _results(runs: Mapping[str, Run]) -> Section:
    found = {what: scores(next(iter(run.sets.values()), {})) for what, run in runs.items()}
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    # What trained and what did not are figures of a run's, not of its model's quality.
    names = [name for name in names if name not in ("parameters", "trained_parameters")]
    same = _same_data(runs)
    best = {name: _best(name, [figures.get(name) for figures in found.values()]) if same else None for name in names}
    rows = []
    for what, run in runs.items():
        row: dict[str, Any] = {"run": what}
        for name in names:
            value = found[what].get(name)
            mark = _MARK if value is not None and value == best[name] else ""
            row[name] = None if value is None else f"{figure(name, value)}{mark}"
        rows.append({**row, **_costs(run)})
    stars = f"{_MARK.strip()} marks the best of a column."
    said = stars if same else "The runs name different data: no best is marked."
    return Section("Results", [Table(rows), Text(said)])


def _same_data(runs: Mapping[str, Run]) -> bool:
    """Whether runs are evaluated on the same data, as far as their settings tell."""
    named = ("data_set", "data_path", "val_split", "split", "val_json", "val_images")
    told = [{name: run.settings.get(name) for name in named} for run in runs.values()]
    return all(one == told[0] for one in told)


def _best(name: str, values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    return min(known) if name.endswith("loss") else max(known)


def _costs(run: Run) -> dict[str, Any]:
    pace = run.pace
    rate = None if pace is None else pace.images_per_second
    counts = {name: run.metrics.get(name) for name in ("parameters", "trained_parameters")}
    return {
        **{name.replace("_", " "): None if count is None else f"{count:,}" for name, count in counts.items()},
        "best epoch": None if run.best_epoch is None else f"{run.best_epoch} of {len(run.epochs)}",
        "s an epoch": None if pace is None else f"{pace.seconds:.2f}",
        "s in all": None if pace is None else f"{pace.total:.1f}",
        "training images/s": None if rate is None else f"{rate:.1f}",
    }


def _settings(runs: Mapping[str, Run]) -> Section:
    names = dict.fromkeys(name for run in runs.values() for name in run.settings if name not in OUTPUT)
    rows = []
    for name in names:
        values = [run.settings.get(name) for run in runs.values()]
        if any(value != values[0] for value in values):
            shown = [None if name not in run.settings else str(run.settings[name]) for run in runs.values()]
            rows.append({"setting": name, **dict(zip(runs, shown, strict=True))})
    return Section("Settings that differ", [Table(rows)] if rows else [Text("None.")])


def _curves(runs: Mapping[str, Run]) -> list[Section]:
    trained = {what: run for what, run in runs.items() if run.epochs}
    if not trained:
        return []
    text = "Validation score and training loss of each run, by epochs and by seconds of training."
    return [Section("Curves", [picture_of(draw_curves(trained), text)])]


def draw_curves(runs: Mapping[str, Run]) -> "Figure":
    """Draw the validation score and the training loss of several runs, against epochs and against seconds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from ..tasks.pictures import plain

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    grid = figure.subplots(2, 2, sharey="row")
    lines = {}
    for number, (what, run) in enumerate(runs.items()):
        names = (run.monitor or "", "train/loss")
        seconds = 0.0
        times = [seconds := seconds + row.get("seconds", 0.0) for row in run.epochs]
        for axes, name in zip(grid, names, strict=True):
            points = [
                (row["epoch"], time, row[name])
                for row, time in zip(run.epochs, times, strict=True)
                if row.get(name) is not None
            ]
            if not points:
                continue
            epochs, passed, values = zip(*points, strict=True)
            colour = f"C{number % 10}"
            style = ("-", "--", ":", "-.")[number // 10 % 4]
            for place, x in zip(axes, (epochs, passed), strict=True):
                (lines[what],) = place.plot(x, values, style, marker=".", color=colour)
                place.set_ylabel(name)
    for place in grid.flat:
        place.grid(alpha=0.3)
    for place in grid[:, 0]:
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[1, 0].set_xlabel("epoch")
    grid[1, 1].set_xlabel("seconds")
    legend = figure.legend(
        lines.values(), map(str, range(len(lines))), loc="outside lower center", ncols=3, frameon=False
    )
    # Given as labels, those that begin with an underscore would be left out.
    for text, what in zip(legend.get_texts(), lines, strict=True):
        text.set_text(plain(what))
    return figure


def _commands(runs: Mapping[str, Run]) -> Section:
    rows = [
        {
            "run": what,
            "folder": str(run.folder),
            **{name: run.starts[-1].get(name) if run.starts else None for name in ("freqformer", "commit", "device")},
            "date": run.starts[-1].get("date") if run.starts else None,
        }
        for what, run in runs.items()
    ]
    commands = [run.again for run in runs.values() if run.again is not None]
    return Section("Where they came from", [Table(rows), *([Code("\n".join(commands))] if commands else [])])
