import json

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from freqformer import FreqFormerError
from freqformer.cli import main
from freqformer.data import LabelMaps, open_images
from freqformer.tools import LabelMapsConfig, make_label_maps
from freqformer.tools.labelmaps import best_classes

CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture
def pictures(tmp_path):
    """Four classes of images of several sizes, and the weights of a teacher of four classes."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=4).state_dict(), tmp_path / "teacher.safetensors")
    for split in ("train", "val"):
        for target, name in enumerate(CLASSES):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i, size in enumerate([(40, 60), (64, 30), (50, 50)]):
                pixels = np.random.default_rng([target, i]).integers(0, 256, (*size, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


@pytest.fixture
def config(pictures):
    def make(**changes):
        settings = {
            "teacher_model": "test_resnet",
            "teacher_path": str(pictures / "teacher.safetensors"),
            "output_dir": str(pictures / "maps"),
            "data_set": "FOLDER",
            "data_path": str(pictures / "data"),
            "input_size": (96, 64),
            "top_k": 2,
            "batch_size": 5,
            "num_workers": 0,
            "device": "cpu",
        }
        return LabelMapsConfig(**{**settings, **changes})

    return make


def test_every_training_image_gets_a_map_that_the_training_reads(config, pictures):
    report = make_label_maps(config())
    assert (report.made, report.kept) == (12, 0)
    assert 0 <= report.agreement <= 1
    images = open_images("FOLDER", pictures / "data", "train")
    maps = LabelMaps(pictures / "maps", pictures / "data", 4)
    loaded = [maps.load(images.name(i)) for i in range(12)]
    assert {m.shape for m in loaded} == {(2, 2, 3, 2)}
    assert len(list((pictures / "maps").rglob("*.safetensors"))) == 12
    stored = load_file(pictures / "maps/train/ant/0.safetensors")
    assert {name: t.dtype for name, t in stored.items()} == {"scores": torch.float16, "classes": torch.int16}
    about = json.loads((pictures / "maps/labelmaps.json").read_text())
    assert about["teacher"] == "test_resnet"
    assert about["weights"] == "teacher.safetensors"
    assert about["grid"] == [3, 2]


def test_a_second_start_makes_what_is_missing_alone(config, pictures):
    make_label_maps(config())
    maps = sorted((pictures / "maps").rglob("*.safetensors"))
    before = {path: path.read_bytes() for path in maps}
    maps[0].unlink()
    maps[1].write_bytes(before[maps[1]][:-1])  # cut off
    times = {path: path.stat().st_mtime_ns for path in maps[2:]}
    report = make_label_maps(config())
    assert (report.made, report.kept) == (2, 10)
    assert {path: path.stat().st_mtime_ns for path in maps[2:]} == times
    assert {path: path.read_bytes() for path in maps} == before
    assert str(make_label_maps(config())).endswith("0 label maps made, 12 kept")


def test_images_that_cannot_be_read_are_named_and_have_no_map(config, pictures):
    # The last one alone makes up the last batch.
    for name in ("bee/1.png", "dog/2.png"):
        (pictures / "data/train" / name).write_bytes(b"no image")
    report = make_label_maps(config(batch_size=11))
    assert (report.made, report.kept, len(report.unreadable)) == (10, 0, 2)
    assert "2 images cannot be read, the first is" in str(report)
    assert len(list((pictures / "maps").rglob("*.safetensors"))) == 10
    assert 0 <= report.agreement <= 1


def test_a_stop_between_two_batches_loses_nothing(config, pictures):
    class Stopped(Exception):
        pass

    def stopping(things):
        for place, thing in enumerate(things):
            if place == 1 and not isinstance(things, range):
                raise Stopped
            yield thing

    with pytest.raises(Stopped):
        make_label_maps(config(), stopping)
    report = make_label_maps(config())
    assert (report.made, report.kept) == (7, 5)


@given(st.integers(0, 1000), st.integers(1, 6), st.floats(-8, 8))
def test_a_softmax_over_a_map_gives_the_teachers_own_probabilities(seed, top_k, constant):
    logits = 4 * torch.randn(2, 6, 3, 2, generator=torch.Generator().manual_seed(seed))
    scores, classes = best_classes(logits + constant, top_k)
    found = torch.zeros_like(logits).scatter(1, classes, scores).softmax(1).gather(1, classes)
    torch.testing.assert_close(found, logits.softmax(1).gather(1, classes), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 3}, "holds label maps with top_k 2: choose another --output-dir"),
        ({"input_size": 64}, "holds label maps with grid"),
        ({"teacher_model": "test_resnet.r160_in1k"}, "holds label maps with teacher test_resnet"),
    ],
)
def test_a_folder_of_other_maps_is_left_alone(config, pictures, changes, message):
    make_label_maps(config())
    before = {path: path.read_bytes() for path in (pictures / "maps").rglob("*") if path.is_file()}
    with pytest.raises(FreqFormerError, match=message):
        make_label_maps(config(**changes))
    assert {path: path.read_bytes() for path in (pictures / "maps").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 5}, "--top-k must be at most the 4 classes"),
        ({"batch_size": 0}, "--batch-size"),
        ({"data_set": "DIGITS", "data_path": None}, "has 4 classes and the data 10"),
        ({"device": "abacus"}, "there is no device 'abacus'"),
    ],
)
def test_settings_that_do_not_work(config, changes, message):
    with pytest.raises(FreqFormerError, match=message):
        make_label_maps(config(**changes))


def test_images_that_would_share_a_map(config, pictures):
    folder = pictures / "data/train/ant"
    (folder / "0.jpg").write_bytes((folder / "0.png").read_bytes())
    with pytest.raises(FreqFormerError, match=r"0\.jpg and .*0\.png would share a label map"):
        make_label_maps(config())


def test_the_command(pictures, capsys):
    words = ["labelmaps", "--teacher-model", "test_resnet", "--teacher-path", pictures / "teacher.safetensors"]
    words += ["--data-set", "FOLDER", "--data-path", pictures / "data", "--output_dir", pictures / "maps"]
    words += ["--input-size", "64", "--top-k", "2", "--num-workers", "0", "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 0
    assert "12 label maps made, 0 kept; the teacher agrees with" in capsys.readouterr().out
