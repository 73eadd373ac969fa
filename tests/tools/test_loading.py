"""`freqformer bench data`: what is measured and kept. No test asserts a timing."""

from dataclasses import fields

import pytest
from PIL import Image

from freqformer import FreqFormerError
from freqformer.bench import read_rows, run, timing
from freqformer.tools.loading import LoaderBenchmark


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One call a sample."""
    monkeypatch.setattr(timing, "_SAMPLE_SECONDS", {"cpu": 1e-9})


SMALL = {"arch": "test_freqformer", "data_set": "DIGITS", "batch_size": 16, "rounds": 2, "warmup": 2, "device": "cpu"}


def test_rows_table_and_picture(command, tmp_path):
    flags = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", value)]
    answer = command("bench", "data", *flags, "--num-workers", 0, 1, "--output-dir", tmp_path)
    assert answer.code == 0, answer.err
    model, *loaders = rows = read_rows(tmp_path / "data.json")
    assert [row["setting"].get("num_workers") for row in rows] == [None, 0, 1]
    assert model["setting"]["part"] == "model"
    for row in rows:
        assert row["what"] == "data"
        assert row["setting"]["data_set"] == "DIGITS"
        assert row["setting"]["input_size"] == 32
        assert row["result"]["ms_p10"] <= row["result"]["ms"] <= row["result"]["ms_p90"]
        assert row["result"]["images_per_second"] == pytest.approx(16 / row["result"]["ms"] * 1e3, rel=1e-3)
    for row in loaders:
        ratio = row["result"]["images_per_second"] / model["result"]["images_per_second"]
        assert row["result"]["loader_over_model"] == pytest.approx(ratio, rel=1e-2)
        assert f"{row['setting']['num_workers']} workers" in answer.out
    assert "training test_freqformer" in answer.out
    with Image.open(tmp_path / "data-cpu-float32.png") as picture:
        assert min(picture.size) > 100


def test_a_data_set_of_one_batch_is_read_again_and_again(tmp_path):
    for label in ("a", "b"):
        for split in ("train", "val"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            Image.new("RGB", (40, 40), "red").save(tmp_path / "data" / split / label / "0.png")
    changes = {"data_set": "FOLDER", "data_path": str(tmp_path / "data"), "batch_size": 2, "rounds": 5}
    rows = run(LoaderBenchmark(**{**SMALL, **changes}, num_workers=[0], output_dir=str(tmp_path)), picture=False)
    assert [row["setting"]["images"] for row in rows] == [2, 2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_workers": [-1]}, "--num-workers must be 0 or more"),
        ({"batch_size": 0}, "--batch-size"),
        ({"batch_size": 10**6}, "fewer than one batch"),
        ({"data_set": "DIGITZ"}, "did you mean DIGITS"),
        ({"arch": "nosuch"}, "nosuch"),
        ({"reprob": 2.0}, "--reprob"),
    ],
)
def test_wrong_use(tmp_path, changes, said):
    with pytest.raises(FreqFormerError, match=said):
        run(LoaderBenchmark(**{**SMALL, **changes}, output_dir=str(tmp_path)), picture=False)


def test_help_explains_every_flag(command):
    answer = command("bench", "data", "--help")
    assert answer.code == 0
    for field in fields(LoaderBenchmark):
        assert "--" + field.name.replace("_", "-") in answer.out
    assert "  data " in command("bench", "--help").out
