"""Pictures of benchmarks' rows, as PNG files."""

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullFormatter

from .record import Row


def draw(kind: str, rows: Sequence[Row], path: Path) -> None:
    """Draw the rows of one run as a PNG.

    Args:
        kind: op, model, train, scaling or data.
        rows: of one device and precision; those without a figure to draw are left out.
        path: the file to write.
    """
    figure = _DRAWN[kind](rows)
    if rows:
        figure.suptitle(f"{rows[0]['device']}, {rows[0]['dtype']}, torch {rows[0]['torch']}", fontsize=9)
    figure.savefig(path, dpi=110)


def _op(rows: Sequence[Row]) -> Figure:
    """Speedups against the size of x, a panel for each operation and pass, a colour for each grid."""
    drawn = [row for row in rows if "speedup" in row["result"]]
    panels = list(dict.fromkeys((row["setting"]["operation"], row["setting"]["pass"]) for row in drawn))
    grids = sorted({tuple(row["setting"]["x"][1:3]) for row in drawn})
    columns = min(2, len(panels)) or 1
    lines = ceil(len(panels) / columns) or 1
    figure = Figure(figsize=(5.5 * columns, 3.8 * lines), layout="constrained")
    for axes, panel in zip(figure.subplots(lines, columns, squeeze=False).flat, panels, strict=False):
        for number, grid in enumerate(grids):
            of_grid = [
                row
                for row in drawn
                if (row["setting"]["operation"], row["setting"]["pass"]) == panel
                and tuple(row["setting"]["x"][1:3]) == grid
            ]
            for graph, marker in ((False, "o"), (True, "^")):
                points = [row["result"] for row in of_grid if row["setting"]["cuda_graph"] is graph]
                if points:
                    label = f"{grid[0]}x{grid[1]}" + (", CUDA graph" if graph else "")
                    _with_spread(axes, points, label=label, marker=marker, color=f"C{number}")
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.set_title(f"{panel[0]}, {panel[1]}")
        axes.set_xlabel("size of x (MiB)")
        axes.set_ylabel(f"times as fast as {drawn[0]['setting']['against']}")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(title="grid")
    return figure


def _with_spread(axes: Axes, points: Sequence[Row], **style: Any) -> None:
    middle = [point["speedup"] for point in points]
    below = [point["speedup"] - point["speedup_p10"] for point in points]
    above = [point["speedup_p90"] - point["speedup"] for point in points]
    axes.errorbar([point["x_mib"] for point in points], middle, yerr=[below, above], linestyle="none", **style)


def _networks(rows: Sequence[Row]) -> Figure:
    """Images per second and, where measured, peak memory, a pair of bars for each model."""
    names = [row["setting"]["arch"] for row in rows]
    figure, panels = _panels([row["result"]["ours"] for row in rows])
    for key, axes in panels.items():
        for shift, side in ((-0.2, "ours"), (0.2, "against")):
            values = [row["result"][side].get(key, 0) for row in rows]
            setting = rows[0]["setting"]["ours" if side == "ours" else "against_setting"]
            name = "ours" if side == "ours" else rows[0]["setting"]["against"]
            words = [name, setting["dtype"], *(["compiled"] if setting["compiled"] else [])]
            bars = axes.bar([i + shift for i in range(len(rows))], values, width=0.38, label=", ".join(words))
            axes.bar_label(bars, fmt="{:.4g}", fontsize=8)
        axes.set_xticks(range(len(rows)), names)
        axes.margins(y=0.15)
        axes.grid(axis="y", alpha=0.3)
        axes.legend()
    return figure


def _scaling(rows: Sequence[Row]) -> Figure:
    """Throughput and, where measured, peak memory against image size, both logarithmic, a line for each model."""
    sizes = sorted({row["setting"]["input_size"] for row in rows})
    names = list(dict.fromkeys(row["setting"]["arch"] for row in rows))
    figure, panels = _panels([row["result"] for row in rows])
    for key, axes in panels.items():
        for name in names:
            points = [
                (row["setting"]["input_size"], row["result"][key])
                for row in rows
                if row["setting"]["arch"] == name and key in row["result"]
            ]
            if not points:
                continue
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
            if name == names[0] and key == "images_per_second":
                linear = [points[0][1] * (points[0][0] / size) ** 2 for size in sizes]
                axes.plot(sizes, linear, color="grey", linestyle=":", label="linear in pixels")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("side of the image (pixels)")
        axes.grid(which="both", alpha=0.3)
        axes.legend()
    return figure


def _loading(rows: Sequence[Row]) -> Figure:
    """Images per second of the loader, a bar for each number of workers, and a line for the model's."""
    figure = Figure(figsize=(5.5, 4.4), layout="constrained")
    axes = figure.subplots()
    loader = [row for row in rows if row["setting"]["part"] == "loader"]
    bars = axes.bar(
        [str(row["setting"]["num_workers"]) for row in loader], [row["result"]["images_per_second"] for row in loader]
    )
    axes.bar_label(bars, fmt="{:.4g}", fontsize=8)
    for row in rows:
        if row["setting"]["part"] == "model":
            rate = row["result"]["images_per_second"]
            label = f"training {row['setting']['arch']}: {rate:.4g}"
            axes.axhline(rate, color="C1", label=label)
    axes.set_xlabel(f"processes that load {rows[0]['setting']['data_set']}" if rows else "processes")
    axes.set_ylabel("images per second")
    axes.margins(y=0.15)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return figure


def _panels(results: Sequence[Row]) -> tuple[Figure, dict[str, Axes]]:
    """A figure with a panel for each of throughput and memory that some result has."""
    labels = {"images_per_second": "images per second", "peak_mib": "peak memory (MiB)"}
    keys = [key for key in labels if any(key in result for result in results)]
    figure = Figure(figsize=(5.5 * max(len(keys), 1), 4.4), layout="constrained")
    panels = dict(zip(keys, figure.subplots(1, max(len(keys), 1), squeeze=False).flat, strict=False))
    for key, axes in panels.items():
        axes.set_ylabel(labels[key])
    return figure, panels


_DRAWN: dict[str, Callable[[Sequence[Row]], Figure]] = {
    "op": _op,
    "model": _networks,
    "train": _networks,
    "scaling": _scaling,
    "data": _loading,
}
