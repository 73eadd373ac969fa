"""The trials of a sweep in an Optuna study for each task, kept in SQLite."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...errors import FreqFormerError, MissingExtra
from .config import Setting

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

DATABASE = "sweep.db"


class Best(NamedTuple):
    """The best setting of a study, and its score."""

    setting: Setting
    score: float


def require_optuna() -> None:
    """Raise MissingExtra where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("optuna", "adapt") from error


@contextmanager
def studies(path: Path, tasks: list[str]) -> Iterator[dict[str, "Study"]]:
    """Open the study of every task, made where there is none.

    Raises:
        FreqFormerError: the file is damaged, or is none of Optuna's.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = None
    try:
        try:
            # The path as it is: SQLAlchemy's versions read a URL's special characters differently.
            creator = {"creator": lambda: sqlite3.connect(path, check_same_thread=False)}
            storage = optuna.storages.RDBStorage(f"sqlite:///{DATABASE}", engine_kwargs=creator)
            opened = {
                task: optuna.create_study(study_name=task, storage=storage, direction="maximize", load_if_exists=True)
                for task in tasks
            }
        except (SQLAlchemyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise FreqFormerError(
                f"cannot read {path}: {reason}; move it away, and what the trials' folders hold is counted again"
            ) from error
        yield opened
    finally:
        optuna.logging.set_verbosity(level)
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()


def trials_of(study: "Study") -> dict[Setting, "FrozenTrial"]:
    """The trials by their settings."""
    return {
        Setting(trial.params["lr"], trial.params["weight_decay"]): trial for trial in study.get_trials(deepcopy=False)
    }


def is_over(study: "Study", setting: Setting) -> bool:
    """Whether a setting's trial has come to its end, good or bad."""
    trial = trials_of(study).get(setting)
    return trial is not None and trial.state.is_finished()


def begin(study: "Study", setting: Setting) -> None:
    """Let a setting's trial run; one that a killed process has left running goes on as the same."""
    from optuna.distributions import FloatDistribution
    from optuna.trial import TrialState, create_trial

    if setting in trials_of(study):
        return
    params = setting._asdict()
    # Whole with its first line: a kill leaves no trial of which nobody knows the setting.
    study.add_trial(
        create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions={name: FloatDistribution(value, value) for name, value in params.items()},
        )
    )


def end(study: "Study", setting: Setting, score: float | None) -> None:
    """Write down a trial's score, or that it failed."""
    from optuna.trial import TrialState

    number = trials_of(study)[setting].number
    if score is None:
        study.tell(number, state=TrialState.FAIL)
    else:
        study.tell(number, score)


def best(study: "Study") -> Best | None:
    """The best of the finished trials; of equal ones that with the smallest learning rate, then weight decay."""
    from optuna.trial import TrialState

    scores = {
        setting: trial.value
        for setting, trial in trials_of(study).items()
        if trial.state == TrialState.COMPLETE and trial.value is not None
    }
    if not scores:
        return None
    setting = max(scores, key=lambda one: (scores[one], -one.lr, -one.weight_decay))
    return Best(setting, scores[setting])


def failures(study: "Study") -> int:
    """How many trials failed."""
    from optuna.trial import TrialState

    return sum(trial.state == TrialState.FAIL for trial in study.get_trials(deepcopy=False))
