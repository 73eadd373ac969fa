"""`freqformer models`: the names and their cost."""

import json

import pytest

from freqformer.models import model_names
from freqformer.tools import list_models


@pytest.mark.slow
def test_the_table_names_every_model(command):
    answer = command("models")
    assert answer.code == 0, answer.err
    names = [line.split()[0] for line in answer.out.splitlines()[1:]]
    assert names == model_names()
    assert {"gfnet_ti", "gfnet_xs", "gfnet_s", "gfnet_b", "freqformer_n", "freqformer_ti"} <= set(names)
    assert len(set(names)) == len(names)


def test_gfnet_xs_costs_what_its_paper_says():
    (row,) = list_models("gfnet_xs")
    assert row.parameters == 15_985_768
    assert round(row.gmacs, 4) == 2.8327
    assert row.input_size == (224, 224)


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"), [("gfnet_ti", 7.5, 1.3), ("gfnet_s", 25, 4.5), ("gfnet_b", 43, 7.9)]
)
def test_the_other_sizes_are_near_their_papers(name, millions, gmacs):
    (row,) = list_models(name)
    assert row.parameters / 1e6 == pytest.approx(millions, rel=0.02)
    assert row.gmacs == pytest.approx(gmacs, rel=0.06)
    assert 0 < row.spectral_gmacs < row.gmacs / 10


@pytest.mark.parametrize("pattern", ["gfnet*", "*_xs", "test_gfnet"])
def test_a_pattern_chooses(command, pattern):
    answer = command("models", pattern)
    assert answer.code == 0
    assert [line.split()[0] for line in answer.out.splitlines()[1:]] == model_names(pattern)


@pytest.mark.parametrize(
    ("spelling", "name"), [("gfnet-xs", "gfnet_xs"), ("GFNet-XS", "gfnet_xs"), ("FreqFormer-B", "freqformer_b")]
)
def test_the_papers_spelling_is_understood(command, spelling, name):
    answer = command("models", spelling)
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[1].split()[0] == name


def test_the_papers_tiny_models_are_found_too(command):
    """SpectFormer and FreqFormer call theirs -T; `--arch freqformer-t` takes it, so does this."""
    answer = command("models", "freqformer-t")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[1].split()[0] == "freqformer_ti"


def test_json_is_an_object_a_model(command):
    answer = command("models", "gfnet_xs", "--json")
    assert answer.code == 0
    row = json.loads(answer.out)
    assert row["name"] == "gfnet_xs"
    assert row["parameters"] == 15_985_768
    assert row["gmacs"] == pytest.approx(2.8327, abs=1e-4)
    lines = command("models", "gfnet*", "--json").out.splitlines()
    assert [json.loads(line)["name"] for line in lines] == model_names("gfnet*")


def test_nothing_that_matches_is_refused(refused):
    assert "resnet50" in refused("models", "resnet50")
