"""Frequency-domain vision models for PyTorch."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it, imported on first use so that `import freqformer` is cheap.
_PUBLIC = {
    "FreqFormerError": "freqformer.errors",
    "create_model": "freqformer.factory",
    "evaluate": "freqformer.engine",
    "load_checkpoint": "freqformer.checkpoints",
    "load_model": "freqformer.factory",
    "predict": "freqformer.tools.predict",
    "train": "freqformer.engine",
}
_MODULES = ("data", "engine", "layers", "models", "ops", "tasks")

__all__ = ["__version__", *_MODULES, *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"freqformer.{name}")
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'freqformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
