"""Frequency-domain vision models for PyTorch."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> module and name that define it, imported on first use so that `import freqformer` is cheap.
_PUBLIC = {
    "FreqFormerError": ("freqformer.errors", "FreqFormerError"),
    "compile_for_inference": ("freqformer.compiling", "compile_for_inference"),
    "create_detector": ("freqformer.dense", "create_detector"),
    "create_model": ("freqformer.factory", "create_model"),
    "create_segmenter": ("freqformer.dense", "create_segmenter"),
    "detect": ("freqformer.tools.dense", "detect"),
    "evaluate": ("freqformer.engine", "evaluate"),
    "export": ("freqformer.tools", "export"),
    "load_checkpoint": ("freqformer.models", "load_checkpoint"),
    "load_model": ("freqformer.factory", "load_model"),
    "predict": ("freqformer.tools", "predict"),
    "segment": ("freqformer.tools.dense", "segment"),
    "train": ("freqformer.engine", "run"),
}
_MODULES = ("adapters", "data", "dense", "engine", "layers", "models", "ops", "tasks", "visualize")

__all__ = ["__version__", *_MODULES, *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"freqformer.{name}")
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'freqformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
