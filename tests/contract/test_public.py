import importlib
import importlib.metadata
import inspect
import re
from pathlib import Path

import pytest

import freqformer

FLOORS = [
    "ops",
    "layers",
    "models",
    "adapters",
    "bench",
    "data",
    "tasks",
    "pages",
    "visualize",
    "engine",
    "tools",
    "demo",
]


@pytest.mark.parametrize("name", freqformer.__all__)
def test_every_public_name_resolves(name):
    assert getattr(freqformer, name) is not None
    assert name in dir(freqformer)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_thing"):
        freqformer.no_such_thing  # noqa: B018


def test_the_version_is_the_installed_ones():
    assert freqformer.__version__ == importlib.metadata.version("freqformer")
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", freqformer.__version__)


def test_the_package_is_typed():
    assert (Path(freqformer.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("floor", FLOORS)
def test_what_a_floor_exports_exists_once_and_is_documented(floor):
    module = importlib.import_module(f"freqformer.{floor}")
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__) > 0
    undocumented = []
    for name in module.__all__:
        thing = getattr(module, name)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        # A dataclass without a docstring gets its signature for one.
        if not thing.__doc__ or thing.__doc__.startswith(f"{name}("):
            undocumented.append(name)
        if inspect.isclass(thing):
            undocumented += [
                f"{name}.{method}"
                for method, function in vars(thing).items()
                if inspect.isfunction(function) and not method.startswith("_") and not inspect.getdoc(function)
            ]
    assert undocumented == []


@pytest.mark.parametrize("name", [n for n in freqformer.__all__ if n != "__version__"])
def test_the_packages_own_names_are_documented(name):
    assert inspect.getdoc(getattr(freqformer, name))
