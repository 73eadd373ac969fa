"""Train and evaluate: the loop around every task."""

from .evaluate import EvaluationConfig, evaluate, validate
from .recipes import recipe_config
from .runner import RESUME_LAST, run
from .signals import Interrupted

__all__ = ["RESUME_LAST", "EvaluationConfig", "Interrupted", "evaluate", "recipe_config", "run", "validate"]
