"""What runs and evaluations leave to look at: best and worst images, where they ran, how they are repeated."""

import csv
import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import freqformer
from freqformer import FreqFormerError
from freqformer.data import open_images
from freqformer.engine import RESUME_LAST, EvaluationConfig, Interrupted, evaluate, run
from freqformer.engine.environment import flags_of, typed
from freqformer.flags import Flags
from freqformer.tasks import AdaptationConfig, evaluation_samples

DIGITS = ["--data-set", "DIGITS", "--num-workers", 0, "--precision", "32-true", "--accelerator", "cpu"]
SETTINGS = {"data_set": "DIGITS", "num_workers": 0, "precision": "32-true", "accelerator": "cpu"}


def rows_of(folder):
    with (Path(folder) / "examples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def ranked(finished):
    """Every digit of the validation split by its loss, computed at once: name, true class, loss."""
    model, images = freqformer.load_model(finished), open_images("DIGITS", None, "val")
    samples = evaluation_samples(model, images)
    batch = torch.stack([samples[i]["image"] for i in range(len(images))])
    targets = torch.as_tensor(images.targets).long()
    with torch.no_grad():
        losses = F.cross_entropy(model(batch), targets, reduction="none")
    return [(images.name(i), images.classes[targets[i]], losses[i].item()) for i in losses.argsort().tolist()]


def assert_extremes(folder, ranked):
    rows = rows_of(folder)
    assert [row["place"] for row in rows] == [f"{kind} {n}" for kind in ("best", "worst") for n in range(1, 17)]
    expected = [*ranked[:16], *ranked[::-1][:16]]
    assert [float(row["loss"]) for row in rows] == pytest.approx([loss for *_, loss in expected], abs=1e-4)
    truth = {name: (label, loss) for name, label, loss in ranked}
    for row in rows:
        assert truth[row["image"]] == (row["truth"], pytest.approx(float(row["loss"]), abs=1e-4))


def test_the_kept_examples_are_the_extremes_of_all_losses(finished, ranked):
    assert_extremes(finished, ranked)


@pytest.mark.slow
def test_two_processes_keep_the_examples_of_one(finished, ranked, tmp_path):
    evaluate(EvaluationConfig(str(finished), batch_size=16, devices=2, output_dir=str(tmp_path / "out"), **SETTINGS))
    assert_extremes(tmp_path / "out", ranked)
    starts = json.loads((tmp_path / "out/environment.json").read_text())
    assert [start["processes"] for start in starts] == [2]


def test_a_run_says_where_it_ran(finished):
    (start,) = json.loads((finished / "environment.json").read_text())
    assert start["torch"] == torch.__version__
    assert start["processes"] == 1
    assert start["precision"] == "32-true"
    # The tests are no command of ours.
    assert start["command"] is None


def test_the_command_is_kept_as_it_was_typed():
    assert typed(["/usr/bin/freqformer", "train", "--data-path", "/a b"]) == "freqformer train --data-path '/a b'"
    assert typed(["/x/freqformer/__main__.py", "eval"]) == "freqformer eval"
    assert typed(["/x/pytest/__main__.py", "eval"]) is None
    assert typed([]) is None


def test_a_run_that_was_stopped_ends_with_its_page(tiny, tmp_path, signal_at):
    folder = tmp_path / "run"
    disarm = signal_at(7)
    with pytest.raises(Interrupted):
        run(tiny(folder))
    disarm()
    assert "1 epochs are done" in (folder / "report.html").read_text()
    run(tiny(folder, resume=RESUME_LAST))
    assert "is the best by val/top1" in (folder / "report.html").read_text()
    assert len(json.loads((folder / "environment.json").read_text())) == 2


def test_a_run_that_was_killed_before_its_page_gets_it(tiny, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "report.html").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run(tiny(folder, resume=RESUME_LAST))
    assert (folder / "report.html").exists()
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_an_adaptation_leaves_its_page(class_folders, tmp_path):
    config = AdaptationConfig(
        encoder="test_freqformer",
        pretrained=False,
        method="linear",
        freqfit="none",
        data_set="FOLDER",
        data_path=str(class_folders()),
        input_size=32,
        epochs=1,
        batch_size=6,
        num_workers=0,
        accelerator="cpu",
        output_dir=str(tmp_path / "run"),
    )
    run(config)
    page = (tmp_path / "run/report.html").read_text()
    assert f"freqformer adapt --config {tmp_path / 'run/config.yaml'}" in page
    # Six images: three are the best, three the worst, and none is both.
    rows = rows_of(tmp_path / "run")
    assert [row["place"] for row in rows] == [f"{kind} {n}" for kind in ("best", "worst") for n in (1, 2, 3)]
    assert len({row["image"] for row in rows}) == 6


# Evaluations

LEFT = {
    *("report.html", "metrics.json", "environment.json", "evaluation.yaml", "examples.csv", "per_class.csv"),
    *("best.png", "worst.png", "confusion.png", "confusions.csv", "filters.png"),
}


def test_an_evaluation_writes_a_new_folder_each_time(command, finished, capfd):
    names = ["runs/eval-run-val", "runs/eval-run-val-2", "runs/eval-run-val-3"]
    for name in names[:2]:
        answer = command("eval", "--model-path", finished, *DIGITS)
        assert answer.code == 0, answer.err
        assert answer.out.strip().endswith(f"; written to {name}")
    figures = json.loads(command("eval", "--model-path", finished, *DIGITS, "--json").out)
    assert figures["output_dir"] == names[2]
    assert {path.name for path in Path(names[2]).iterdir()} == LEFT
    written = json.loads(Path(names[2], "metrics.json").read_text())
    assert written == {name: value for name, value in figures.items() if name != "output_dir"}


def test_an_evaluation_that_is_to_write_nothing_does_not(command, finished):
    answer = command("eval", "--model-path", finished, *DIGITS, "--output-dir", "none")
    assert answer.code == 0, answer.err
    assert "written" not in answer.out
    assert "output_dir" not in evaluate(EvaluationConfig(str(finished), **SETTINGS))
    assert list(Path().iterdir()) == []


def test_an_evaluation_that_fails_leaves_no_folder(refused, finished):
    refused("eval", "--model-path", finished, *DIGITS, "--precision", "nosuch")
    assert [path for path in Path().rglob("*") if path.name != "runs"] == []


def test_an_evaluation_replaces_nothing_unasked(command, refused, finished, tmp_path):
    words = ["eval", "--model-path", finished, *DIGITS, "--output-dir"]
    assert "holds a run" in refused(*words, finished, "--overwrite")
    assert command(*words, tmp_path / "out").code == 0
    (tmp_path / "out/notes.txt").write_text("mine")
    before = (tmp_path / "out/metrics.json").read_text()
    assert "--overwrite" in refused(*words, tmp_path / "out")
    assert (tmp_path / "out/metrics.json").read_text() == before
    assert "--overwrite" in refused("train", *DIGITS, "--arch", "test_freqformer", "--output-dir", tmp_path / "out")
    assert command(*words, tmp_path / "out", "--overwrite").code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*LEFT, "notes.txt"}


@pytest.fixture
def no_figures(monkeypatch):
    """No picture of matplotlib can be written."""

    def fail(*arguments, **more):
        raise FreqFormerError("cannot write the picture: the disk is full")

    monkeypatch.setattr("freqformer.tasks.pictures.save_figure", fail)
    monkeypatch.setattr("freqformer.engine.evaluations.save_figure", fail)


def test_pictures_of_the_user_are_not_replaced_unasked(command, refused, finished, tmp_path):
    folder = tmp_path / "pics"
    folder.mkdir()
    for name in ("filters.png", "predictions.png"):
        (folder / name).write_text("mine")
    words = ["eval", "--model-path", finished, *DIGITS, "--output-dir", folder]
    assert "filters.png" in refused(*words)
    assert {path.read_text() for path in folder.iterdir()} == {"mine"}
    assert command(*words, "--overwrite").code == 0
    assert {path.name for path in folder.iterdir()} == {*LEFT, "predictions.png"}
    assert (folder / "predictions.png").read_text() == "mine"


def test_an_evaluation_that_fails_leaves_the_folder_of_the_user(refused, finished, tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        refused("eval", "--model-path", finished, *DIGITS, "--precision", "nosuch", "--output-dir", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_picture_that_cannot_be_written_costs_no_figures(command, finished, tmp_path, no_figures):
    words = ["eval", "--model-path", finished, *DIGITS, "--json", "--output-dir", tmp_path / "out"]
    answer = command(*words, "--per-class", tmp_path / "classes.csv")
    assert (answer.code, answer.err) == (2, "freqformer: cannot write the picture: the disk is full\n")
    figures = json.loads(answer.out)
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == figures
    assert f"{100 * figures['top1']:.2f}%" in (tmp_path / "out/report.html").read_text()
    assert (tmp_path / "classes.csv").read_text() == (tmp_path / "out/per_class.csv").read_text()


def test_a_run_whose_pictures_cannot_be_written_is_finished(tiny, tmp_path, no_figures):
    folder = tmp_path / "run"
    with pytest.raises(FreqFormerError, match="the disk is full"):
        run(tiny(folder, epochs=1))
    assert "best" in json.loads((folder / "metrics.json").read_text())
    assert "is the best by val/top1" in (folder / "report.html").read_text()


def test_the_command_of_an_evaluation_repeats_it(command, finished, tmp_path):
    words = ["eval", "--model-path", finished, *DIGITS, "--batch-size", 50, "--crop-pct", 0.9]
    words += ["--per-class", tmp_path / "classes.csv", "--output-dir"]
    assert command(*words, tmp_path / "one").code == 0
    kept = yaml.safe_load((tmp_path / "one/evaluation.yaml").read_text())
    assert kept["changed"][0] == "model_path"
    program, *again = kept["command"].split()
    assert program == "freqformer"
    assert kept["command"] in (tmp_path / "one/report.html").read_text()
    (tmp_path / "classes.csv").write_text("mine by now")
    assert command(*again[:-1], tmp_path / "two").code == 0
    assert (tmp_path / "classes.csv").read_text() == "mine by now"
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert {k: v for k, v in one.items() if "second" not in k} == {k: v for k, v in two.items() if "second" not in k}


def values_of(type_):
    """Any value of a field's type."""
    # A word alone that YAML takes for no value is none of a path's.
    words = st.text("abcé09 /-_.$'\"", min_size=1).filter(lambda word: word.strip() == word and set(word) - set("-."))
    kinds = {str: words, int: st.integers(-9, 10**6), float: st.floats(0, 1), bool: st.booleans()}
    kinds |= {type(None): st.none(), tuple[int, int]: st.tuples(st.integers(1, 999), st.integers(1, 999))}
    kinds |= {tuple[float, float]: st.tuples(st.floats(0, 1), st.floats(0, 1))}
    return st.one_of([kinds[choice] for choice in get_args(type_) or [type_]]) if type_ not in kinds else kinds[type_]


@st.composite
def evaluations(draw, config_type):
    types = get_type_hints(config_type)
    # `auto` is a word, and a number of processes may be spelt as one.
    given = {"devices": st.sampled_from(["auto", 1, 7]), "arch": st.sampled_from([None, "gfnet_ti"])}
    # Where it writes is not said: the repeated one would replace it.
    places = ("output_dir", "overwrite", "per_class")
    names = [field.name for field in fields(config_type) if field.name not in places]
    return config_type(**{name: draw(given.get(name, values_of(types[name]))) for name in names})


@pytest.mark.parametrize("kind", ["eval", "detect", "segment"])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_the_flags_of_an_evaluation_say_the_same(kind, data):
    if kind == "eval":
        config_type = EvaluationConfig
    else:
        dense = pytest.importorskip("freqformer.engine.evaluate_dense", reason="the extra dense is not installed")
        config_type = {"detect": dense.DetectionEvaluation, "segment": dense.SegmentationEvaluation}[kind]
    config = data.draw(evaluations(config_type))
    flags = Flags("freqformer", "")
    flags.fields(config_type)
    assert config_type(**flags.parse(flags_of(config))) == config
