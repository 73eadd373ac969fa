"""`freqformer visualize`: what it writes, and what it refuses in a line."""

import base64
import re

import pytest
import torch
from PIL import Image

from freqformer import adapters, create_model
from freqformer.checkpoints import save_model, save_weights
from freqformer.factory import create_encoder, describe_model


@pytest.fixture
def saved(tmp_path):
    """Write a model as a run leaves it."""

    def write(name, model, arguments=None):
        save_model(tmp_path / name, model.state_dict(), describe_model(model, arguments or {}))
        return tmp_path / name

    return write


@pytest.fixture
def adapted(saved):
    """An encoder of timm with FreqFit's filters, the 1-D ones among them."""
    model, arguments = create_encoder("test_vit", num_classes=3, img_size=64, pretrained=False)
    for method in ("freqfit", "filter1d"):
        adapters.attach(model, method)
    return saved("adapted", model, arguments)


def pictures(page):
    """The pictures that lie in a page."""
    return [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", page.read_text("utf-8"))]


def test_the_picture_and_the_page_are_written(command, model_folder, tmp_path):
    answer = command("visualize", "filters", model_folder, "--output-dir", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert answer.out.split() == [str(tmp_path / "out/filters.png"), str(tmp_path / "out/filters.html")]
    with Image.open(tmp_path / "out/filters.png") as picture:
        assert picture.format == "PNG"
    page = tmp_path / "out/filters.html"
    text = page.read_text("utf-8")
    drawn = pictures(page)
    assert drawn[0] == (tmp_path / "out/filters.png").read_bytes()
    names = [name for name in create_model("test_freqformer").state_dict() if name.endswith("complex_weight")]
    assert len(drawn) == 1 + len(names)
    assert all(name.removesuffix(".complex_weight") in text for name in names)
    assert all(word in text for word in ("energy", "DC gain", "footprint"))
    assert f"freqformer visualize filters {model_folder}\n" in text.replace("</", "\n")


def test_channels_by_number_and_the_command_that_repeats_it(command, model_folder, tmp_path):
    words = ("--layers", "0", "--channel-numbers", "3", "1")
    answer = command("visualize", "filters", model_folder, *words, "--output-dir", tmp_path / "out")
    assert answer.code == 0, answer.err
    text = (tmp_path / "out/filters.html").read_text("utf-8")
    assert f"freqformer visualize filters {model_folder} --layers 0 --channel-numbers 3 1" in text


def test_earlier_files_are_refused_before_anything_else(command, refused, model_folder, tmp_path):
    for name in ("filters.png", "filters.html"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine")
        said = refused("visualize", "filters", tmp_path / "nowhere", "--output-dir", folder)
        assert f"{name} is there already" in said
        assert "--overwrite" in said
        assert (folder / name).read_text() == "mine"
        answer = command("visualize", "filters", model_folder, "--channels", 1, "--output-dir", folder, "--overwrite")
        assert answer.code == 0, answer.err
        assert (folder / name).read_bytes() != b"mine"


def test_an_image_is_not_written_over(refused, saved, tmp_path):
    model = saved("model", create_model("test_dfformer"), {"img_size": [32, 32]})
    Image.new("RGB", (32, 32)).save(tmp_path / "filters.png")
    words = ("visualize", "filters", model, "--images", tmp_path / "filters.png", "--output-dir", tmp_path)
    assert "is one of the images" in refused(*words, "--overwrite")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layers", "stages.0.blocks.9"], "there is no spectral layer 'stages.0.blocks.9'"),
        (["--layers", "77"], "there is no spectral layer 77: choose from 0"),
        (["--order", "size"], "choose one of energy, index, random"),
        (["--channels", "0"], "at least 1"),
        (["--arch", "gfnet_ti"], "leave out --arch or correct it"),
        (["--images", "nowhere.png"], "there is no image or folder nowhere.png"),
        (["--layer", "0"], "did you mean --layers?"),
    ],
)
def test_wrong_words_are_one_line_and_leave_nothing(refused, model_folder, tmp_path, words, said):
    assert said in refused("visualize", "filters", model_folder, "--output-dir", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_images_are_for_dynamic_filters_alone(refused, model_folder, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "grey.png")
    words = ("visualize", "filters", model_folder, "--images", tmp_path / "grey.png", "--output-dir", tmp_path / "out")
    assert "no dynamic filters" in refused(*words)


def test_models_without_filters_are_refused(refused, saved, tmp_path):
    model = saved("afno", create_model("test_afno"), {"img_size": [32, 32]})
    assert "no spectral layers" in refused("visualize", "filters", model, "--output-dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_exported_files_are_refused(refused, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    said = refused("visualize", "filters", tmp_path / "model.onnx", "--output-dir", tmp_path / "out")
    assert "name the run it was made from" in said


def test_bare_weights_need_their_name(command, refused, tmp_path):
    save_weights(tmp_path / "bare.safetensors", create_model("test_gfnet").state_dict(), None)
    words = ("visualize", "filters", tmp_path / "bare.safetensors", "--output-dir", tmp_path / "out")
    assert "--arch" in refused(*words)
    assert command(*words, "--arch", "test_gfnet").code == 0


def test_an_adapted_model(command, adapted, tmp_path):
    words = ("--layers", "0", "-1", "--channels", "2", "--output-dir", tmp_path / "out")
    answer = command("visualize", "filters", adapted, *words)
    assert answer.code == 0, answer.err
    text = (tmp_path / "out/filters.html").read_text("utf-8")
    # As many tokens in a grid as in a line.
    assert "1×16" in text
    assert "4×4" in text


@pytest.mark.parametrize("task", ["detector", "segmenter"])
def test_dense_models(command, refused, make_detector, make_segmenter, tmp_path, task):
    folder = {"detector": make_detector, "segmenter": make_segmenter}[task](tmp_path / "model")
    words = ("visualize", "filters", folder, "--layers", "0", "-1", "--output-dir", tmp_path / "out")
    answer = command(*words, "--arch", "test-gfnet-h")
    assert answer.code == 0, answer.err
    assert len(pictures(tmp_path / "out/filters.html")) == 3
    assert "leave out --arch" in refused(*words, "--arch", "gfnet_ti", "--overwrite")


def test_images_show_what_they_choose(command, saved, tmp_path):
    model = saved("model", create_model("test_dfformer"), {"img_size": [32, 32]})
    for number in range(2):
        pixels = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{number}$<b>.png")
    words = ("visualize", "filters", model, "--layers", "0", "--output-dir", tmp_path / "out", "--images")
    answer = command(*words, *(tmp_path / f"{number}$<b>.png" for number in range(2)))
    assert answer.code == 0, answer.err
    assert "What images choose" in (tmp_path / "out/filters.html").read_text("utf-8")
    assert len(pictures(tmp_path / "out/filters.html")) == 3


def test_alone_it_explains_itself(command, refused):
    answer = command("visualize")
    assert (answer.code, answer.err) == (2, "")
    assert "filters" in answer.out
    assert "did you mean filters?" in refused("visualize", "filter")
