"""Detection and segmentation from scratch on small real data sets: a spectral backbone beside a convolutional one.

    python benchmarks/dense.py DATA [--minutes 15] [--tasks bccd nuclei camvid]

DATA holds the folders bccd, dsb2018-nuclei and camvid. Both arms of a task have the same settings but the backbone, and
train side by side in a thread each, for as many epochs as fit into the minutes at the pace of a trial of three epochs
(both arms of it side by side too). The runs are ordinary ones of `freqformer detect` and `freqformer segment`; their
lines are printed, rows go to benchmarks/results/dense.json and curves to benchmarks/results/dense.png.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from freqformer.bench import append_rows, make_row
from freqformer.bench.record import Row, read_rows

ROWS = Path(__file__).parent / "results" / "dense.json"
CONVOLUTIONAL = "regnetx_002"
TASKS: dict[str, dict[str, Any]] = {
    "bccd": {
        "command": ["detect", "train", "--recipe", "small_retinanet", "--data-path", "bccd", "--vflip", "0.5"],
        "spectral": ["--arch", "gfnet_h_n", "--native-size", "256", "320"],
        "test": ["detect", "eval", "--data-path", "bccd", "--split", "test"],
        "score": "AP50",
    },
    "nuclei": {
        "command": [
            *("detect", "train", "--recipe", "small_maskrcnn", "--data-path", "dsb2018-nuclei", "--vflip", "0.5"),
            *("--max-dets", "150"),
        ],
        "spectral": ["--arch", "gfnet_h_n", "--native-size", "256"],
        "test": ["detect", "eval", "--data-path", "dsb2018-nuclei", "--split", "val"],
        "score": "mask_AP50",
    },
    "camvid": {
        "command": [
            *("segment", "train", "--recipe", "small_fpn", "--data-path", "camvid", "--ignore-index", "11"),
            *("--color-jitter", "0.3", "--class-balance", "0.5"),
        ],
        "spectral": ["--arch", "freqformer_h_n", "--model-args.spectral_stages", "4", "--native-size", "192", "256"],
        "test": ["segment", "eval", "--data-path", "camvid", "--ignore-index", "11", "--split", "test"],
        "score": "mIoU",
    },
}
"""Of each task the line of both arms, the spectral arm's backbone, the line of the test, and the score to draw."""


def main() -> None:
    """Train, test and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--runs", type=Path, default=Path("runs/dense"))
    args = parser.parse_args()
    for task in args.tasks:
        append_rows(ROWS, compare(task, args.data, args.minutes, args.runs / task))
        draw(latest(read_rows(ROWS)), ROWS.with_suffix(".png"))


def latest(rows: list[Row]) -> list[Row]:
    """The last row of each task and arm."""
    return list({(row["what"], row["setting"]["arm"]): row for row in rows}.values())


def compare(task: str, data: Path, minutes: float, runs: Path) -> list[Row]:
    """Train both arms of a task at once, and test them."""
    settings = TASKS[task]
    arms = {"spectral": settings["spectral"], "convolutional": ["--arch", CONVOLUTIONAL, "--native-size", "none"]}
    line = _located(settings["command"], data)
    trial = ["--epochs", "3", "--eval-every", "3", "--overwrite"]
    trials = together({arm: [*line, *own, *trial, "--output-dir", f"{runs}/trial-{arm}"] for arm, own in arms.items()})
    commands = {}
    for arm, own in arms.items():
        epochs = trials[arm]["epochs"]
        pace, evaluation = epochs[1]["seconds"], max(0.0, epochs[2]["seconds"] - epochs[1]["seconds"])
        count = max(1, int((60 * minutes - 8 * evaluation) / pace))
        more = ["--epochs", str(count), "--eval-every", str(max(1, count // 8)), "--overwrite"]
        commands[arm] = [*line, *own, *more, "--output-dir", f"{runs}/{arm}"]
    metrics = together(commands)
    rows = []
    for arm, found in metrics.items():
        test = _located(settings["test"], data)
        more = ["--model-path", f"{runs}/{arm}", "--output-dir", f"{runs}/{arm}-test", "--overwrite"]
        together({arm: [*test, *more]}, metrics_in=f"{runs}/{arm}-test")
        tested = json.loads(Path(f"{runs}/{arm}-test/metrics.json").read_text())
        result = {
            "parameters": found["trained_parameters"],
            "train_seconds": found["train_seconds"],
            "epochs": len(found["epochs"]),
            "curve": _curve(found["epochs"], f"val/{settings['score']}"),
            "val": found["best"],
            "test": tested,
        }
        setting = {"arm": arm, "line": " ".join(["freqformer", *commands[arm]]), "score": settings["score"]}
        rows.append(make_row(task, setting, result, dtype="bfloat16", device="cpu"))
    return rows


def together(lines: dict[str, list[str]], metrics_in: str | None = None) -> dict[str, dict[str, Any]]:
    """Run commands at once, a thread each; returns what their folders' metrics say."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    processes = {}
    for arm, line in lines.items():
        print("freqformer", *line, flush=True)
        words = [sys.executable, "-m", "freqformer", *line, *([] if metrics_in else ["--num-workers", "1"])]
        processes[arm] = subprocess.Popen(words, env=environment)
    for arm, process in processes.items():
        if process.wait():
            raise SystemExit(f"{arm} failed with exit code {process.returncode}")
    print(f"{time.monotonic() - started:.0f} s", flush=True)
    folders = {arm: metrics_in or line[line.index("--output-dir") + 1] for arm, line in lines.items()}
    return {arm: json.loads((Path(folder) / "metrics.json").read_text()) for arm, folder in folders.items()}


def draw(rows: list[Row], path: Path) -> None:
    """Draw each task's score on the validation split against the minutes of training."""
    tasks = {row["what"]: row["setting"]["score"] for row in rows}
    figure = Figure(figsize=(4.6 * len(tasks), 3.6), layout="constrained")
    for axes, (task, score) in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks.items(), strict=True):
        for row in rows:
            if row["what"] == task:
                minutes, scores = zip(*row["result"]["curve"], strict=True)
                axes.plot(minutes, scores, marker=".", label=row["setting"]["arm"])
        axes.set_title(f"{task}: {score}, validation")
        axes.set_xlabel("minutes on one core")
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def _located(line: list[str], data: Path) -> list[str]:
    place = line.index("--data-path") + 1
    return [*line[:place], str(data / line[place]), *line[place + 1 :]]


def _curve(epochs: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    minutes, points = 0.0, []
    for row in epochs:
        minutes += row["seconds"] / 60
        if name in row:
            points.append((round(minutes, 2), row[name]))
    return points


if __name__ == "__main__":
    main()
