"""The command line as a whole: help, version, exit codes, errors."""

import os
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

import freqformer
from freqformer.cli import main
from freqformer.engine import EvaluationConfig
from freqformer.tasks import ClassificationConfig

COMMANDS = ["quickstart", "models", "recipes", "train", "eval", "predict", "export"]


@dataclass
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def command(capfd):
    """Call the command line in this process."""

    def call(*words):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        return Answer(stop.value.code, *capfd.readouterr())

    return call


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command(command, flag):
    answer = command(flag)
    assert answer.code == 0
    assert all(f"  {name} " in answer.out for name in COMMANDS)


def test_no_command_prints_the_help_and_is_wrong_use(command):
    answer = command()
    assert answer.code == 2
    assert "quickstart" in answer.out + answer.err


def test_version(command):
    answer = command("--version")
    assert answer.code == 0
    assert answer.out == f"freqformer {freqformer.__version__}\n"


FLAGS = {
    "quickstart": ["output_dir"],
    "models": ["json"],
    "recipes": ["json"],
    "train": [*(field.name for field in fields(ClassificationConfig)), "recipe", "config"],
    "eval": [*(field.name for field in fields(EvaluationConfig)), "json"],
    "predict": ["model_path", "arch", "top_k", "batch_size", "json"],
    "export": [
        *("model_path", "arch", "format", "input_size", "dynamic_size", "opset", "dtype", "calibration", "features"),
        "overwrite",
    ],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_a_commands_help_names_every_flag_with_dashes(command, name, flag):
    answer = command(name, flag)
    assert answer.code == 0, answer.err
    for field in FLAGS[name]:
        assert "--" + field.replace("_", "-") in answer.out
    assert not [word for word in answer.out.split() if word.startswith("--") and "_" in word.partition("=")[0]]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_flag_of_the_help_is_unknown(command, name):
    shown = {word.strip("[],|").partition("=")[0] for word in command(name, "--help").out.split()}
    for flag in sorted(word for word in shown if word.startswith("--")):
        assert "there is no flag" not in command(name, flag, "--help").err


@pytest.mark.parametrize("name", ["train", "eval"])
def test_help_explains_every_flag(command, name):
    text = "".join(command(name, "--help").out.split())
    explained = {"train": ["Passesoverthetrainingsplit", "Stochasticdepth"], "eval": ["Arun'sfolder", "Processesthat"]}
    assert all(words in text for words in explained[name])


def test_an_unknown_command_suggests_the_nearest(command):
    answer = command("trian")
    assert answer.code == 2
    assert answer.err == "freqformer: there is no command 'trian': did you mean train?\n"
    answer = command("xyzzy")
    assert answer.code == 2
    assert all(name in answer.err for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag_suggests_the_nearest(command, name):
    answer = command(name, "--hlep")
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert "--help" in answer.err


@pytest.mark.parametrize(
    ("name", "wrong", "near"),
    [
        ("train", "--bathc-size", "--batch-size"),
        ("train", "--bathc_size", "--batch-size"),
        ("train", "--learning-rate", None),
        ("eval", "--modelpath", "--model-path"),
        ("predict", "--topk", "--top-k"),
        ("export", "--dynamic", "--dynamic-size"),
    ],
)
def test_the_nearest_flag_is_suggested_with_dashes(command, name, wrong, near):
    answer = command(name, wrong, "3")
    assert answer.code == 2
    assert f"there is no flag {wrong}" in answer.err
    assert near is None or near in answer.err


@pytest.mark.parametrize(("name", "missing"), [("eval", "--model-path"), ("predict", "--model-path")])
def test_a_missing_flag_is_named(command, name, missing):
    answer = command(name, *(["x.png"] if name == "predict" else []))
    assert answer.code == 2
    assert missing in answer.err
    assert answer.err.count("\n") == 1


def test_predict_without_images_is_refused(command):
    answer = command("predict", "--model-path", "x")
    assert answer.code == 2
    assert "images" in answer.err


def test_debug_adds_the_traceback_before_the_line(command):
    assert "Traceback" not in command("eval", "--model-path", "nowhere").err
    for words in (("eval", "--model-path", "nowhere", "--debug"), ("--debug", "eval", "--model-path", "nowhere")):
        answer = command(*words)
        assert answer.code == 2
        assert "Traceback" in answer.err
        assert answer.err.splitlines()[-1] == "freqformer: there is no checkpoint nowhere"


class Absent:
    """An importer that knows nothing of some modules."""

    def __init__(self, *names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
        return None


@pytest.mark.parametrize(
    ("absent", "words", "extra"),
    [
        ("lightning", ["train", "--data-set", "DIGITS"], "train"),
        ("lightning", ["eval", "--model-path", "x"], "train"),
        ("torchmetrics", ["train", "--data-set", "DIGITS"], "train"),
        ("matplotlib", ["quickstart"], "train"),
        ("jsonargparse", ["models"], "cli"),
        ("docstring_parser", ["models"], "cli"),
        ("onnx", ["export", "--arch", "test_gfnet", "x.onnx"], "export"),
        ("onnxscript", ["export", "--arch", "test_gfnet", "x.onnx"], "export"),
        ("onnxruntime", ["export", "--arch", "test_gfnet", "x.onnx"], "export"),
        ("onnxruntime", ["predict", "--model-path", "x.onnx", "x.png"], "export"),
    ],
)
def test_a_missing_library_names_the_extra_that_has_it(command, monkeypatch, tmp_path, absent, words, extra):
    monkeypatch.chdir(tmp_path)
    for name in list(sys.modules):
        if name.split(".")[0] == absent or (name.startswith("freqformer.") and name not in KEPT):
            monkeypatch.delitem(sys.modules, name)
    for module in ("engine", "tasks", "tools", "flags", "data"):
        monkeypatch.delattr(freqformer, module, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(absent), *sys.meta_path])
    answer = command(*words)
    assert answer.code == 2
    assert answer.err == f"freqformer: {absent} is not installed: pip install 'freqformer[{extra}]'\n"


# Modules whose classes this process holds on to.
KEPT = {
    name
    for name in sys.modules
    if name in ("freqformer.cli", "freqformer.errors", "freqformer.factory", "freqformer.checkpoints")
    or name.startswith(("freqformer.models", "freqformer.layers", "freqformer.ops"))
}


def test_an_unforeseen_error_is_one_line_with_code_1(command, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("freqformer.tools.list_models", fail)
    answer = command("models")
    assert answer.code == 1
    assert answer.err == "freqformer: RuntimeError: first line (--debug shows where)\n"


def test_ctrl_c_is_130(command, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("freqformer.tools.list_models", stop)
    answer = command("models")
    assert answer.code == 130
    assert answer.err.count("\n") == 1


def in_process(*words, **settings):
    return subprocess.run(words, capture_output=True, text=True, check=False, **settings)


@pytest.mark.slow
def test_the_module_and_the_command_are_the_same():
    script = Path(sys.executable).parent / "freqformer"
    if not script.exists():
        pytest.skip("the command is not installed beside this Python")
    for words in (["--version"], ["models", "gfnet_xs", "--json"], ["trian"]):
        one, other = in_process(script, *words), in_process(sys.executable, "-m", "freqformer", *words)
        assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)


@pytest.mark.slow
def test_a_reader_that_has_had_enough_is_no_error():
    # head's part: read a line of what is more than a pipe holds, then close.
    code = "from freqformer.cli import main; main(['models', '--json'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() in (0, 141)
    assert err == b""


@pytest.mark.slow
def test_version_and_help_import_no_torch():
    code = (
        "import sys\nfrom freqformer.cli import main\n"
        "try:\n    main([{!r}])\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    for flag in ("--version", "--help"):
        done = in_process(sys.executable, "-c", code.format(flag))
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_train_eval_and_predict_one_after_another(tmp_path):
    from PIL import Image

    flags = "--arch test_freqformer --data-set DIGITS --limit-train 64 --epochs 1 --batch_size 16 --num_workers 2"
    run = [sys.executable, "-m", "freqformer"]
    settings = {"cwd": tmp_path, "env": {**os.environ, "PYTHONWARNINGS": "default"}}
    trained = in_process(*run, "train", *flags.split(), "--output_dir", "out", **settings)
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr == ""
    evaluated = in_process(*run, "eval", "--model-path", "out", "--data-set", "DIGITS", **settings)
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.startswith("top1 ")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    predicted = in_process(*run, "predict", "--model-path", "out", "a.png", **settings)
    assert predicted.returncode == 0, predicted.stderr
    assert "a.png" in predicted.stdout
