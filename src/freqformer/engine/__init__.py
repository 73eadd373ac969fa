"""Train and evaluate: the loop around every task."""

from .evaluate import EvaluationConfig, evaluate, validate
from .recipes import recipe_config
from .runner import RESUME_LAST, run
from .signals import Interrupted
from .sweep import SweepConfig, sweep

__all__ = [
    "RESUME_LAST",
    "EvaluationConfig",
    "Interrupted",
    "SweepConfig",
    "evaluate",
    "recipe_config",
    "run",
    "sweep",
    "validate",
]
