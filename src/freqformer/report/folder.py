"""What lies in a run's folder, read; whatever an older run lacks is empty."""

import csv
import io
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import Image

from ..errors import FreqFormerError
from ..pages import Picture
from ..tasks.extremes import EXAMPLES

CONFIG = "config.yaml"
METRICS = "metrics.json"
ENVIRONMENT = "environment.json"
EVALUATION = "evaluation.yaml"
FILTERS = "filters.png"
REPORT = "report.html"

SETS = {"best": "best epoch", "raw": "its weights without the average", "average": "mean of the last epochs"}
"""The sets of weights whose figures ``metrics.json`` has, in words."""
MONITORS = ("val/top1", "val/mask_AP", "val/AP", "val/mIoU")
"""The score by which an epoch is the best, of each task."""
_TIMING = ("images", "bad_images", "seconds", "images_per_second")
OUTPUT = ("output_dir", "overwrite", "resume", "per_class")
"""The settings that say where a run or an evaluation writes, and nothing of what it does."""
# A page stays below a few MB: pictures of more bytes become JPEG files.
_LARGE = 400_000
# libyaml does it ten times as fast, where it is there.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Pace(NamedTuple):
    """How long a run's epochs took, with their evaluations."""

    epochs: int
    seconds: float
    """Of an epoch, on average."""
    total: float
    """Seconds of all epochs."""
    images_per_second: float | None
    """Training images; None where their number is not known."""


@dataclass(frozen=True)
class Run:
    """A run's or an evaluation's folder."""

    folder: Path
    command: str
    """What is typed after ``freqformer``."""
    settings: dict[str, Any]
    changed: list[str]
    """The settings that differ from the defaults."""
    again: str | None
    """The command line that repeats it."""
    metrics: dict[str, Any]
    starts: list[dict[str, Any]]
    """Where and how it was started, each time."""
    unknown: str
    """Why the starts are not known, where they are not."""

    @property
    def task(self) -> str:
        """What its model does."""
        word = self.command.split()[0]
        return {"detect": "detection", "segment": "segmentation"}.get(word, "classification")

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The figures of each epoch; none of an evaluation."""
        return self.metrics.get("epochs", [])

    @property
    def is_evaluation(self) -> bool:
        """Whether it trained nothing."""
        return self.command.endswith("eval")

    @property
    def sets(self) -> dict[str, dict[str, Any]]:
        """The figures of each set of weights, by what it is."""
        if self.is_evaluation:
            return {self.settings.get("split", "evaluated"): self.metrics} if self.metrics else {}
        return {name: self.metrics[key] for key, name in SETS.items() if key in self.metrics}

    @property
    def monitor(self) -> str | None:
        """The name of the score by which an epoch is the best."""
        return next((name for name in MONITORS if any(name in row for row in self.epochs)), None)

    @property
    def best_epoch(self) -> int | None:
        """The number of the epoch whose weights the run has kept."""
        name = self.monitor or ""
        rows = [row for row in self.epochs if row.get(name) is not None]
        return max(rows, key=lambda row: row[name])["epoch"] if rows else None

    @property
    def pace(self) -> Pace | None:
        """How long training took; None where no epoch's time is known."""
        seconds = [row["seconds"] for row in self.epochs if "seconds" in row]
        if not seconds:
            return None
        mean, images = sum(seconds) / len(seconds), self.metrics.get("images_per_epoch")
        return Pace(len(seconds), mean, sum(seconds), None if images is None or mean <= 0 else images / mean)

    def table(self, name: str) -> list[dict[str, str]]:
        """The rows of a CSV file, with empty cells where one is too short; none where it is missing or damaged."""
        path = self.folder / name
        if not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            try:
                rows = list(csv.DictReader(file, restkey="", restval=""))
            except csv.Error:
                return []
        return [{name: value for name, value in row.items() if name} for row in rows]

    def examples(self) -> list[dict[str, str]]:
        """The best and the worst predictions."""
        return self.table(EXAMPLES)

    def picture(self, name: str, text: str, width: int = 1600) -> list[Picture]:
        """A picture of the folder for a page, of at most so many pixels a row; none where it is missing."""
        path = self.folder / name
        if not path.is_file():
            return []
        png = path.read_bytes()
        try:
            return [Picture(_shrunk(png, width), text)]
        except OSError:
            # No picture after all.
            return []


def scores(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that say how good a model is."""
    numbers = {name: value for name, value in figures.items() if value is None or isinstance(value, (int, float))}
    return {name: value for name, value in numbers.items() if name not in _TIMING}


def figure(name: str, value: Any) -> str | None:
    """A score as it is printed: accuracies of images in percent."""
    if value is None:
        return None
    return f"{100 * value:.2f}%" if name.startswith("top") else f"{value:.4f}"


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Args:
        folder: of a run or an evaluation; only one of its files of settings and figures has to be there.

    Raises:
        FreqFormerError: it holds neither, or one of them is damaged.
    """
    config, evaluation, metrics = (mapping(folder / name) for name in (CONFIG, EVALUATION, METRICS))
    starts, unknown = _starts(folder / ENVIRONMENT)
    known: dict[str, Any] = {"folder": folder, "metrics": metrics, "starts": starts, "unknown": unknown}
    if config and config.keys() >= {"epochs", "batch_size"}:
        kind = _config_type(config)
        line = ["freqformer", *kind.command.split(), "--config", str(folder / CONFIG), "--output-dir", "NEW"]
        defaults = {name: _plain(value) for name, value in asdict(kind()).items()}
        changed = [name for name, value in config.items() if name in defaults and defaults[name] != value]
        changed = [name for name in changed if name not in OUTPUT]
        return Run(command=kind.command, settings=config, changed=changed, again=shlex.join(line), **known)
    if isinstance(evaluation.get("settings"), dict):
        again, changed = evaluation.get("command"), evaluation.get("changed", [])
        words = str(again).split()
        command = "eval" if words[1:2] == ["eval"] else " ".join(words[1:3])
        return Run(command=command, settings=evaluation["settings"], changed=changed, again=again, **known)
    if metrics.keys() >= {"images", "seconds"}:
        # An evaluation from before evaluation.yaml.
        command = "detect eval" if "AP" in metrics else "segment eval" if "mIoU" in metrics else "eval"
        return Run(command=command, settings={}, changed=[], again=None, **known)
    raise FreqFormerError(f"{folder} holds no run: name a folder that a training or an evaluation has written")


def _starts(path: Path) -> tuple[list[dict[str, Any]], str]:
    """What ``environment.json`` holds, or nothing and why: it is only told, and the page can do without."""
    damaged = f"{path.name} is damaged."
    try:
        starts = _read(path)
    except FreqFormerError:
        return [], damaged
    if starts is None:
        return [], "The run is older than this page."
    found = isinstance(starts, list) and all(isinstance(start, dict) for start in starts)
    return (starts, "") if found else ([], damaged)


def _config_type(config: Mapping[str, Any]) -> Any:
    if "detector" in config:
        from ..tasks.detection import DetectionConfig

        return DetectionConfig
    if "decoder" in config:
        from ..tasks.segmentation import SegmentationConfig

        return SegmentationConfig
    from ..tasks import AdaptationConfig, ClassificationConfig

    return AdaptationConfig if "encoder" in config else ClassificationConfig


def mapping(path: Path) -> dict[str, Any]:
    """The names and values of a JSON or YAML file; nothing where it is missing or holds something else."""
    content = _read(path)
    return content if isinstance(content, dict) else {}


def _read(path: Path) -> Any:
    """What a JSON or YAML file holds; nothing where it is missing."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text()) if path.suffix == ".json" else yaml.load(path.read_text(), _LOADER)
    except (ValueError, yaml.YAMLError) as error:
        raise FreqFormerError(f"{path} is damaged: restore it, or repeat the run") from error


def _plain(value: Any) -> Any:
    """A setting as a file has it."""
    return list(value) if isinstance(value, tuple) else value


def _shrunk(png: bytes, width: int) -> bytes:
    with Image.open(io.BytesIO(png)) as picture:
        if len(png) <= _LARGE and picture.width <= width:
            return png
        opened = picture.convert("RGB")
    # A sheet of many rows may be as high as it needs to be.
    opened.thumbnail((width, 4 * width))
    file = io.BytesIO()
    opened.save(file, "JPEG", quality=85)
    return file.getvalue()
