"""What a sweep is asked for, and whether it is the one that a folder holds."""

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from ...data import VTAB_TASKS
from ...tasks import AdaptationConfig, require

RATES = (50.0, 25.0, 10.0, 5.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05)
"""Learning rates for a few trained parameters: those that FreqFit's tune_vtab.py has for linear and prompt."""
RATES_OF_FULL = (0.005, 0.001, 0.0005, 0.0001)
"""Learning rates for full fine-tuning: those that it has for finetune."""
CHOSEN = {
    "data_set": "give --tasks",
    "lr": "give --lrs",
    "weight_decay": "give --weight-decays",
    "train_split": "every data set has its own for tuning and for the result",
    "val_split": "every data set has its own for tuning and for the result",
    "overwrite": "choose another --output-dir",
}
"""Fields of a run that are no flags of a sweep, and what is in their place."""
_KEEPS = ("all", "adapters", "metrics")
# What a sweep may go on with otherwise than it began: nothing of it changes a result.
_FREE = ("num_workers", "save_every_minutes", "max_bad_images", "keep", "output_dir", "resume")
_GROWING = ("tasks", "lrs", "weight_decays", "seeds")


class Setting(NamedTuple):
    """A point of the grid."""

    lr: float
    weight_decay: float

    def __str__(self) -> str:
        return f"lr {self.lr:g}, weight decay {self.weight_decay:g}"

    @property
    def folder(self) -> str:
        """The name of its run's folder."""
        return f"lr{self.lr}_wd{self.weight_decay}"


@dataclass
class SweepConfig(AdaptationConfig):
    """A sweep over tasks: its grid and its seeds, besides what every adaptation run has.

    ``data_set``, ``lr``, ``weight_decay`` and the splits are the sweep's own choice.
    """

    tasks: list[str] = field(default_factory=list)
    """Data sets, by the names of --data-set; all stands for the 19 of VTAB-1k."""
    lrs: list[float] = field(default_factory=list)
    """Learning rates of the grid, as they are unless --lr-base-batch says otherwise; by default 50 25 10 5 2.5 1 0.5
    0.25 0.1 0.05, and 0.005 0.001 0.0005 0.0001 for --method full."""
    weight_decays: list[float] = field(default_factory=lambda: [0.01, 0.001, 0.0001, 0.0])
    """Weight decays of the grid."""
    seeds: list[int] = field(default_factory=lambda: [42, 44, 82, 100, 800])
    """Seeds of the runs with the best setting."""
    seed: int = 0
    """The seed of the trials."""
    keep: str = "adapters"
    """What the seeds' runs keep: all, adapters (no whole model and no checkpoint) or metrics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [name for task in self.tasks for name in (VTAB_TASKS if task == "all" else [_bare(task)])]
        self.tasks = list(dict.fromkeys(names))
        rates = self.lrs or (RATES_OF_FULL if self.method == "full" else RATES)
        self.lrs = list(dict.fromkeys(map(float, rates)))
        self.weight_decays = list(dict.fromkeys(map(float, self.weight_decays)))
        self.seeds = list(dict.fromkeys(self.seeds))

    def check(self) -> None:
        """Refuse settings outside their range; raises FreqFormerError."""
        super().check()
        require(bool(self.tasks), "--tasks", "one or more data sets, or all", "none")
        folders = [task_folder(task) for task in self.tasks]
        require(len(set(folders)) == len(folders), "--tasks", "names of different folders", ", ".join(self.tasks))
        for name in ("lrs", "weight_decays", "seeds"):
            values = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            require(bool(values), flag, "one or more", "none")
            require(all(value >= 0 for value in values), flag, "0 or more", " ".join(map(str, values)))
        require(self.keep in _KEEPS, "--keep", ", ".join(_KEEPS), self.keep)
        require(self.num_nodes == 1, "--num-nodes", "1: a sweep runs on one node", self.num_nodes)
        require(self.resume in (None, "last"), "--resume", "without a value in a sweep", self.resume)

    def grid(self) -> list[Setting]:
        """Every setting to try."""
        return [Setting(lr, weight_decay) for lr in self.lrs for weight_decay in self.weight_decays]

    def run(self, task: str, splits: tuple[str, str], setting: Setting, seed: int, folder: Path) -> AdaptationConfig:
        """The config of one of the sweep's runs."""
        own = {field.name: getattr(self, field.name) for field in fields(AdaptationConfig)}
        train_split, val_split = splits
        chosen = {
            "data_set": task,
            "train_split": train_split,
            "val_split": val_split,
            "lr": setting.lr,
            "weight_decay": setting.weight_decay,
            "seed": seed,
            "output_dir": str(folder),
            "resume": None,
            "overwrite": False,
        }
        return AdaptationConfig(**{**own, **chosen})

    def settings(self) -> dict[str, Any]:
        """What the sweep's ``config.yaml`` holds."""
        return {**{name: value for name, value in asdict(self).items() if name not in CHOSEN}, "resume": None}

    def default_output_dir(self) -> str:
        """The sweep's folder when none is named."""
        parts = [Path(self.encoder).name, self.method, *([self.freqfit] if self.freqfit != "none" else [])]
        return "runs/sweep-" + "-".join(re.sub(r"[^\w.]+", "-", part.lower()).strip("-") for part in parts)


def task_folder(task: str) -> str:
    """The name of a task's folder within a sweep's."""
    # A Hugging Face data set has a slash in its name, or is a folder.
    return re.sub(r"[^\w.-]+", "-", task).strip("-")


def difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What keeps a sweep from going on with another one's results, in words; it may have grown.

    Args:
        before: the settings that the folder holds.
        now: those of the sweep that is to go on.
    """
    for name, value in now.items():
        if name in _FREE or name not in before or before[name] == value:
            continue
        flag, old = f"--{name.replace('_', '-')}", before[name]
        if name not in _GROWING:
            return f"{flag} {_words(old)}, and now {_words(value)}"
        if missing := [one for one in old if one not in value]:
            return (
                f"{flag} {_words(old)}, of which {_words(missing)} {'is' if len(missing) == 1 else 'are'} now missing"
            )
    return None


def _bare(task: str) -> str:
    bare = task.removeprefix("vtab:")
    return bare if bare in VTAB_TASKS else task


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
