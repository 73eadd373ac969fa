"""Train and evaluate: the loop around every task."""

from .evaluate import EvaluationConfig, evaluate, validate
from .runner import RESUME_LAST, run
from .signals import Interrupted

__all__ = ["RESUME_LAST", "EvaluationConfig", "Interrupted", "evaluate", "run", "validate"]
