"""A run's folder as one page, and several side by side."""

from .compare import compare
from .folder import REPORT
from .page import write_report

__all__ = ["REPORT", "compare", "write_report"]
