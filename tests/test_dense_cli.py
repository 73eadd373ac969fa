"""`freqformer detect` and `freqformer segment`, before anything heavy is imported."""

import subprocess
import sys

import pytest

from freqformer.cli import main


@pytest.fixture
def command(capfd):
    """Call the command line in this process: exit code, standard output, standard error."""

    def call(*words):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        return (stop.value.code, *capfd.readouterr())

    return call


KINDS = ("detect", "segment")


@pytest.mark.parametrize("kind", KINDS)
def test_alone_it_explains_itself(command, kind):
    code, out, err = command(kind)
    assert (code, err) == (2, "")
    assert all(name in out for name in ("train", "eval", "predict"))
    assert command(kind, "--help") == (0, out, "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "did you mean train?"),
        (["prediction"], "did you mean predict?"),
        (["zzz"], "choose one of train, eval, predict"),
        (["predict", "--model-pth", "x", "y"], "did you mean --model-path?"),
        (["predict"], "--model-path"),
        (["predict", "--model-path", "x"], "images"),
    ],
)
def test_wrong_words_are_one_line(command, kind, words, said):
    code, out, err = command(kind, *words)
    assert (code, out) == (2, "")
    assert err.startswith("freqformer: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize("kind", KINDS)
def test_other_spellings_of_the_folder(command, kind, tmp_path):
    pytest.importorskip("segmentation_models_pytorch", reason="the extra dense is not installed")
    (tmp_path / "run").mkdir()
    for flag in ("--work-dir", "--work_dir", "--output-dir"):
        for words in ([flag, tmp_path / "run"], [f"{flag}={tmp_path / 'run'}"]):
            code, _, err = command(kind, "train", "--resume", *words)
            assert (code, f"{tmp_path / 'run'} holds no run to resume" in err) == (2, True), err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["train", "eval", "predict"])
def test_help_explains_every_flag(command, kind, name):
    pytest.importorskip("segmentation_models_pytorch", reason="the extra dense is not installed")
    code, out, err = command(kind, name, "--help")
    assert (code, err) == (0, "")
    assert "--output-dir" in out or "--output_dir" in out


BLOCKED = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from freqformer.cli import main
main(sys.argv[2:])
"""


def without(library, *words):
    command = [sys.executable, "-c", BLOCKED, library, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["segmentation_models_pytorch", "faster_coco_eval"])
@pytest.mark.parametrize(
    "words",
    [
        ("detect", "train", "data"),
        ("detect", "eval", "--model-path", "x"),
        ("detect", "predict", "--model-path", "x", "y"),
        ("segment", "train", "data"),
    ],
)
def test_a_missing_library_is_one_line_with_its_extra(library, words):
    if library == "faster_coco_eval" and words[0] == "segment":
        pytest.skip("segmentation does without COCO's scores")
    answer = without(library, *words)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1, answer.stderr
    assert "pip install 'freqformer[dense]'" in answer.stderr


@pytest.mark.slow
@pytest.mark.parametrize("library", ["segmentation_models_pytorch", "faster_coco_eval"])
@pytest.mark.parametrize("words", [("train", "--help"), ("models", "test_gfnet"), ("detect",), ("segment", "--help")])
def test_other_commands_do_without(library, words):
    answer = without(library, *words)
    assert answer.returncode in (0, 2)
    assert answer.stderr == ""
    assert answer.stdout
