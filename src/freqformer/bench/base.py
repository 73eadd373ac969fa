"""What the benchmarks share: their settings, and the run from cases to rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..errors import FreqFormerError
from .record import Row, append_rows
from .timing import Spread

DTYPES = ("float32", "bfloat16", "float16")
MIB = 2**20

Table = tuple[list[str], list[list[str]]]


@dataclass
class Benchmark(ABC):
    """What every benchmark is told."""

    kind: ClassVar[str]
    """The subject, and the name of the file of its rows."""

    device: str = "auto"
    """Where to compute: cpu, cuda, or auto, which is cuda where there is one."""
    dtype: str = "float32"
    """Precision: float32, bfloat16 or float16."""
    rounds: int = 10
    """Samples of each candidate; they take turns."""
    warmup: int = 3
    """Calls of each candidate that are not counted; at least 2."""
    output_dir: str | None = None
    """Where rows and picture go; by default benchmarks/results where it exists, else bench-results."""

    def check(self) -> None:
        """Refuse settings outside their range.

        Raises:
            FreqFormerError: naming the flag.
        """
        one_of("--device", self.device, ("auto", "cpu", "cuda"))
        one_of("--dtype", self.dtype, DTYPES)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise FreqFormerError("--device cuda: torch finds no GPU here; leave the flag out or use cpu")
        at_least_one("rounds", self.rounds)
        if self.warmup < 2:
            raise FreqFormerError(f"--warmup must be at least 2, not {self.warmup}")

    @abstractmethod
    def cases(self) -> Sequence[Any]:
        """What is measured one after another."""

    @abstractmethod
    def measure(self, case: Any) -> Iterator[Row]:
        """Check and time one case."""

    def summarise(self, rows: Sequence[Row]) -> list[Row]:
        """Rows about all of a run's rows together."""
        return []

    @abstractmethod
    def table(self, rows: Sequence[Row]) -> Table:
        """Header and lines that show rows to a person."""

    def torch_device(self) -> torch.device:
        """The device that the settings mean."""
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(automatic if self.device == "auto" else self.device)

    def folder(self) -> Path:
        """Where rows and picture go."""
        if self.output_dir is not None:
            return Path(self.output_dir)
        usual = Path("benchmarks/results")
        return usual if usual.is_dir() else Path("bench-results")

    def rows_path(self) -> Path:
        """The file that the rows are added to."""
        return self.folder() / f"{self.kind}.json"

    def picture_path(self) -> Path:
        """The picture of the last run of this kind on such a device in this precision."""
        return self.folder() / f"{self.kind}-{self.torch_device().type}-{self.dtype}.png"


def run(
    config: Benchmark,
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter,
    *,
    picture: bool = True,
) -> list[Row]:
    """Measure what a config asks for; each row is kept as soon as it is measured.

    Args:
        config: an `OpBenchmark`, `ModelBenchmark`, `TrainBenchmark` or `ScalingBenchmark`.
        track: passes on the cases, and may show progress or stop early.
        picture: whether to draw the rows as a PNG; needs matplotlib.

    Returns:
        The rows of this run.

    Raises:
        FreqFormerError: unusable settings.
        Disagreement: a candidate is wrong; nothing of its case was timed.
    """
    config.check()
    if picture:
        # Before an hour of measuring rather than after it.
        from .pictures import draw
    rows: list[Row] = []
    for case in track(config.cases()):
        for row in config.measure(case):
            append_rows(config.rows_path(), [row])
            rows.append(row)
    summary = config.summarise(rows)
    if summary:
        append_rows(config.rows_path(), summary)
    if picture:
        draw(config.kind, rows, config.picture_path())
    return rows + summary


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a name such as ``"bfloat16"``."""
    return getattr(torch, name)


def milliseconds(seconds: Spread) -> dict[str, float]:
    """A spread of seconds, as a row keeps it."""
    return {
        "ms": rounded(1e3 * seconds.median),
        "ms_p10": rounded(1e3 * seconds.p10),
        "ms_p90": rounded(1e3 * seconds.p90),
    }


def ratio(factor: Spread) -> dict[str, float]:
    """A spread of rounds' ratios, as a row keeps it."""
    return {
        "speedup": rounded(factor.median),
        "speedup_p10": rounded(factor.p10),
        "speedup_p90": rounded(factor.p90),
    }


def rounded(value: float) -> float:
    """Four significant digits, which is more than a timing has."""
    return float(f"{value:.4g}")


def readable(value: float) -> str:
    """A figure for a table: four digits, or a whole number."""
    return f"{value:.4g}" if value < 1e4 else f"{value:.0f}"


def one_of(flag: str, value: str, choices: Sequence[str]) -> None:
    """Raise FreqFormerError unless a flag's value is one of its choices."""
    if value not in choices:
        raise FreqFormerError(f"{flag} {value}: choose one of {', '.join(choices)}")


def at_least_one(name: str, value: int) -> None:
    """Raise FreqFormerError unless a field's number is positive."""
    if value < 1:
        raise FreqFormerError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
