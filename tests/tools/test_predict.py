"""`freqformer predict` and ``freqformer.predict``."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

import freqformer
from freqformer import FreqFormerError, predict
from freqformer.tasks import model_transform
from freqformer.tools import find_images

LABELS = ["ape", "bee", "cat", "dog"]


def picture(seed=0, size=(40, 30)):
    """Smooth noise, so that resizing keeps it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def shots(tmp_path):
    folder = tmp_path / "shots"
    folder.mkdir()
    for i in range(3):
        picture(i).save(folder / f"{i}.png")
    return folder


# Python


def test_a_path_an_image_and_a_model_agree(model_folder, shots):
    model = freqformer.load_model(model_folder)
    by_path = predict(model_folder, shots / "0.png")
    by_text = predict(str(model_folder), str(shots / "0.png"))
    in_memory = predict(model, Image.open(shots / "0.png"))
    assert by_path == by_text
    assert by_path[0].image == str(shots / "0.png")
    assert by_path[0].labels == in_memory[0].labels
    assert by_path[0].probabilities == in_memory[0].probabilities
    assert in_memory[0].image == "image 0"


def test_the_probabilities_are_the_models_most_probable_first(model_folder):
    (found,) = predict(model_folder, picture(), top_k=4)
    assert sorted(found.indices) == [0, 1, 2, 3]
    assert found.labels == [LABELS[i] for i in found.indices]
    assert found.probabilities == sorted(found.probabilities, reverse=True)
    assert sum(found.probabilities) == pytest.approx(1, abs=1e-5)
    model = freqformer.load_model(model_folder)
    with torch.no_grad():
        expected = model(model_transform(model)(picture())[None]).softmax(-1)[0]
    assert found.probabilities == pytest.approx([expected[i].item() for i in found.indices], abs=1e-6)


def test_top_k_larger_than_the_classes_gives_all(model_folder):
    assert len(predict(model_folder, picture(), top_k=50)[0].labels) == 4


def test_batches_do_not_change_the_answers_or_their_order(model_folder):
    images = [picture(i) for i in range(5)]
    alone = [predict(model_folder, image)[0] for image in images]
    for batch_size in (1, 2, 64):
        together = predict(model_folder, (image for image in images), batch_size=batch_size)
        assert [p.image for p in together] == [f"image {i}" for i in range(5)]
        for one, other in zip(alone, together, strict=True):
            assert one.labels == other.labels
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_no_images_give_no_predictions(model_folder):
    assert predict(model_folder, []) == []


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_comes_back(model_folder, tmp_path, training):
    model = freqformer.load_model(model_folder).train(training)
    predict(model, picture())
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    with pytest.raises(FreqFormerError):
        predict(model, tmp_path / "nowhere.png")
    assert model.training is training


def test_a_model_in_training_predicts_as_in_evaluation(model_folder):
    model = freqformer.create_model("test_freqformer", num_classes=4, drop_path_rate=0.9, drop_rate=0.9)
    torch.nn.init.normal_(model.head.weight)
    first, second = predict(model.train(), picture()), predict(model.eval(), picture())
    assert first == second


def test_a_model_without_classes_is_refused():
    with pytest.raises(FreqFormerError, match="classifier"):
        predict(freqformer.create_model("test_freqformer", num_classes=0), picture())


def test_a_thousand_classes_have_imagenets_names():
    model = freqformer.create_model("test_freqformer", num_classes=1000)
    torch.nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        model.head.bias.zero_()[207] = 5.0
    assert "golden retriever" in predict(model, picture())[0].labels[0]


def test_classes_without_names_are_numbers():
    model = freqformer.create_model("test_freqformer", num_classes=3)
    assert set(predict(model, picture())[0].labels) == {"0", "1", "2"}


MODES = ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"]


@pytest.mark.parametrize("mode", MODES)
def test_images_of_every_mode_are_read(model_folder, tmp_path, mode):
    grey = picture().convert("L")
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    if mode == "I;16":
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(path)
        # 16 bits of the same grey say the same.
        grey.save(tmp_path / "8.png")
        expected = predict(model_folder, tmp_path / "8.png")[0].probabilities
        assert predict(model_folder, path)[0].probabilities == pytest.approx(expected, abs=1e-5)
    else:
        picture().convert(mode).save(path)
        assert len(predict(model_folder, path)[0].labels) == 4


def test_the_first_frame_of_an_animation_is_read(model_folder, tmp_path):
    frames = [picture(i).quantize(16) for i in range(3)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "first.gif")
    moving, still = predict(model_folder, [tmp_path / "x.gif", tmp_path / "first.gif"])
    assert moving.probabilities == pytest.approx(still.probabilities, abs=1e-5)


def test_a_photograph_is_turned_upright(model_folder, tmp_path):
    upright = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    turned, plain = predict(model_folder, [tmp_path / "turned.png", tmp_path / "upright.png"])
    assert turned.probabilities == pytest.approx(plain.probabilities, abs=1e-5)


def test_folders_are_searched_to_the_bottom_in_order(tmp_path):
    for name in ("b/2.PNG", "b/c/1.jpg", "a/3.webp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture().save(path, format="PNG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    found = list(find_images([tmp_path]))
    assert found == sorted(found)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a/3.webp", "b/2.PNG", "b/c/1.jpg"]


# The command line


def test_the_table_has_a_line_an_image(command, model_folder, shots):
    answer = command("predict", "--model-path", model_folder, shots / "0.png", shots / "1.png", "--top-k", 2)
    assert answer.code == 0, answer.err
    assert answer.err == ""
    lines = answer.out.splitlines()
    assert len(lines) == 3
    for line, name in zip(lines[1:], ("0.png", "1.png"), strict=True):
        (expected,) = predict(model_folder, shots / name, top_k=2)
        assert str(shots / name) in line
        for label, share in zip(expected.labels, expected.probabilities, strict=True):
            assert f"{label} {share:.1%}" in line


def test_json_is_a_line_an_image(command, model_folder, shots):
    answer = command("predict", "--model-path", model_folder, shots, "--top-k", 3, "--json", "--batch-size", 2)
    assert answer.code == 0, answer.err
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert [row["image"] for row in rows] == [str(shots / f"{i}.png") for i in range(3)]
    for i, row in enumerate(rows):
        (expected,) = predict(model_folder, shots / f"{i}.png", top_k=3)
        assert row["labels"] == expected.labels
        assert row["indices"] == expected.indices
        assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)


def test_top_k_larger_than_the_classes(command, model_folder, shots):
    answer = command("predict", "--model-path", model_folder, shots / "0.png", "--top-k", 99, "--json")
    assert answer.code == 0, answer.err
    assert sorted(json.loads(answer.out)["labels"]) == LABELS


@pytest.mark.parametrize("flag", ["--top-k", "--batch-size"])
@pytest.mark.parametrize("value", [0, -1, "x"])
def test_a_wrong_number_is_one_line(refused, model_folder, shots, flag, value):
    assert flag in refused("predict", "--model-path", model_folder, shots / "0.png", flag, value)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_unreadable_images_are_said_and_skipped(command, model_folder, shots, form):
    (shots / "1.png").write_text("no image")
    (shots / "2.png").write_bytes(b"")
    answer = command("predict", "--model-path", model_folder, shots, *form)
    assert answer.code == 1
    assert answer.err.count("\n") == 2
    assert str(shots / "1.png") in answer.err
    assert str(shots / "2.png") in answer.err
    assert str(shots / "0.png") in answer.out
    assert str(shots / "1.png") not in answer.out


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_when_no_image_can_be_read_nothing_is_printed(command, model_folder, tmp_path, form):
    (tmp_path / "a.png").write_text("no image")
    answer = command("predict", "--model-path", model_folder, tmp_path, *form)
    assert answer.code == 1
    assert answer.out == ""
    assert answer.err.count("\n") == 1


def test_an_empty_folder_is_refused(refused, model_folder, tmp_path):
    assert "no images" in refused("predict", "--model-path", model_folder, tmp_path)


def test_a_missing_image_is_refused(refused, model_folder, tmp_path, shots):
    line = refused("predict", "--model-path", model_folder, shots / "0.png", tmp_path / "nowhere.png")
    assert "nowhere.png" in line


ODD = ["two words.png", "ünïcödé 猫.png", "[bold]brackets[b].png", "[red].png", "$HOME;'x'.png", "a:smile:.png"]


@pytest.mark.parametrize("name", ODD)
def test_odd_file_names_are_printed_as_they_are(command, model_folder, tmp_path, name):
    picture().save(tmp_path / name)
    assert str(tmp_path / name) in command("predict", "--model-path", model_folder, tmp_path / name).out
    answer = command("predict", "--model-path", model_folder, tmp_path / name, "--json")
    assert json.loads(answer.out)["image"] == str(tmp_path / name)


def test_a_name_that_is_no_text_does_not_end_the_rest(command, model_folder, shots):
    odd = os.fsencode(shots) + b"/\xff.png"
    picture().save(os.fsdecode(odd), format="PNG")
    answer = command("predict", "--model-path", model_folder, shots, "--json")
    assert answer.code in (0, 1), answer
    assert len([line for line in answer.out.splitlines() if line]) >= 3


def test_a_file_given_twice_is_answered_twice(command, model_folder, shots):
    answer = command("predict", "--model-path", model_folder, shots / "0.png", shots / "0.png", "--json")
    assert [json.loads(line)["image"] for line in answer.out.splitlines()] == [str(shots / "0.png")] * 2


def test_a_name_that_begins_with_a_dash(command, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture().save("-x.png")
    answer = command("predict", "--model-path", model_folder, "--json", "--", "-x.png")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["image"] == "-x.png"
