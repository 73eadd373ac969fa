"""Each floor imports floors below it alone, and importing stays cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import freqformer

PACKAGE = Path(freqformer.__file__).parent
# From the ground up: a module imports its own package and those listed before it.
FLOORS = (
    *(
        "errors",
        "launchers",
        "torchscript",
        "checkpoints",
        "tables",
        "compiling",
        "ops",
        "layers",
        "models",
        "adapters",
    ),
    *(
        "onnx_model",
        "factory",
        "teachers",
        "bench",
        "data",
        "dense",
        "tasks",
        "pages",
        "visualize",
        "report",
        "engine",
        "tools",
        "demo",
        "flags",
        "settings",
        "spellings",
        "terminal",
        "dense_cli",
        "visualize_cli",
        "report_cli",
        "cli",
    ),
    "__main__",
)
MODULES = sorted(PACKAGE.rglob("*.py"))


def floor_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """The (line, dotted absolute module) pairs that a file imports, wherever in it."""
    package = ["freqformer", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            if len(base) == 1:
                yield from ((node.lineno, f"{base[0]}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, ".".join(base)


def own(module):
    """The floor that a module's name belongs to, or None for another package's."""
    parts = module.split(".")
    return parts[1] if parts[0] == "freqformer" and len(parts) > 1 else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    here = floor_of(path)
    if here == "__init__":
        allowed = {"__future__", "importlib", "typing", "importlib.metadata"}
        assert {module for _, module in imports(path) if own(module) is None} <= allowed
        return
    assert here in FLOORS, f"{here} has no floor: give it one here and in docs/architecture.md"
    for line, module in imports(path):
        below = own(module)
        # The version is the one thing that everybody may ask of the package itself.
        if below is None or below == "__version__":
            continue
        assert FLOORS.index(below) <= FLOORS.index(here), f"{path.name}:{line} imports {module}, which is above it"


def test_the_operations_import_torch_alone():
    for path in MODULES:
        if floor_of(path) != "ops":
            continue
        for line, module in imports(path):
            top = module.split(".")[0]
            # The lowering of that name is imported only when it is chosen.
            packages = {"torch", "triton"} if path.name == "triton.py" else {"torch"}
            is_fine = top in packages | sys.stdlib_module_names or module.startswith("freqformer.ops")
            assert is_fine, f"{path.name}:{line} imports {module}"


@pytest.mark.parametrize("folder", ["layers", "models"])
def test_the_core_needs_torch_and_timm_alone(folder):
    for path in MODULES:
        if floor_of(path) == folder:
            tops = {module.split(".")[0] for _, module in imports(path)} - set(sys.stdlib_module_names)
            assert tops <= {"torch", "timm", "freqformer"}, path.name


def test_every_module_has_one_subject_of_bearable_length():
    for path in MODULES:
        source = path.read_text()
        assert len(source.splitlines()) <= 500, f"{path.name} has a second module in it"
        assert ast.get_docstring(ast.parse(source)), f"{path.name} does not say what it is"


def modules_after(statement):
    code = f"import sys; {statement}; print(*sorted(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_importing_the_package_is_cheap():
    assert not modules_after("import freqformer") & {"torch", "timm", "numpy", "lightning", "rich"}


def test_the_core_runs_without_the_extras():
    loaded = modules_after("import freqformer.models, freqformer.ops")
    assert not loaded & {"lightning", "jsonargparse", "matplotlib", "sklearn", "torchmetrics", "tensorboard", "rich"}
    assert "freqformer.ops.triton" not in loaded


def test_help_does_not_wait_for_torch():
    code = (
        "import contextlib, io, sys\n"
        "from freqformer.cli import main\n"
        "sys.argv = ['freqformer', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main()\n"
        "print(*sorted(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"torch", "lightning", "timm"} & set(output.split())
