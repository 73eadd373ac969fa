"""What the page shows of an image, without a page."""

import math

import numpy as np
import pytest
from PIL import Image

from freqformer.demo import attention_of, filters_of, load, look
from freqformer.demo.examples import write_examples
from freqformer.demo.looking import ALL, TOP_K
from freqformer.errors import FreqFormerError
from freqformer.tools import predict

TASKS = ["classification", "detection", "segmentation"]


def differ(one, other):
    return one.size != other.size or np.any(np.asarray(one) != np.asarray(other))


def test_a_classifier_says_what_the_command_predicts(subjects, photo):
    subject = subjects["classification"]
    said = look(subject, photo).of_given
    (predicted,) = predict(subject.model, photo, top_k=TOP_K)
    assert list(said.shares) == predicted.labels
    assert list(said.shares.values()) == pytest.approx(predicted.probabilities)


@pytest.mark.parametrize("task", TASKS)
def test_a_whole_spectrum_leaves_everything_as_it_is(subjects, photo, task):
    seen = look(subjects[task], photo)
    assert seen.of_left is seen.of_given
    assert np.abs(np.asarray(seen.left, int) - np.asarray(seen.given, int)).max() <= 1


@pytest.mark.parametrize("task", TASKS)
def test_what_is_removed_changes_image_spectrum_and_answer(subjects, photo, task):
    seen = look(subjects[task], photo, 0, 0.2, 0.0)
    assert differ(seen.left, seen.given)
    assert differ(seen.left_spectrum, seen.spectrum)
    given, left = seen.of_given, seen.of_left
    if task == "classification":
        assert given.shares != left.shares
    else:
        assert differ(given.picture, left.picture)


def test_waves_are_left_or_removed_by_their_frequency(subjects):
    """Eight periods in 32 pixels are half the Nyquist frequency."""
    waves = np.rint(127.5 + 100 * np.cos(2 * math.pi * 8 * np.arange(32) / 32))
    image = Image.fromarray(np.tile(waves, (32, 1)).astype(np.uint8)).convert("RGB")
    subject = subjects["segmentation"]
    for low, high, stays in [(0, 0.45, False), (0, 0.55, True), (0.45, 0.55, True), (0.55, ALL, False)]:
        left = np.asarray(look(subject, image, low, high).left)
        assert (np.ptp(left) > 150) == stays, (low, high)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [(1, 1), (20, 1), (1, 20), (7, 5)])
def test_tiny_images_are_looked_at(subjects, task, size):
    seen = look(subjects[task], Image.new("RGB", size, (10, 200, 90)), 0.1, 0.9)
    assert seen.spectrum.size == seen.left_spectrum.size
    assert seen.of_left.shares or seen.of_left.picture


def test_a_segmenter_tells_the_shares_of_its_classes(subjects, photo):
    said = look(subjects["segmentation"], photo).of_given
    assert set(said.shares) <= {"ground", "box", "disc"}
    assert sum(said.shares.values()) == pytest.approx(1)


def test_the_least_score_leaves_out_detections(subjects, photo):
    subject = subjects["detection"]
    every, none = (look(subject, photo, score_thr=score).of_given for score in (0.0, 1.0))
    assert "×" in every.summary
    assert none.summary == "nothing of this score or above"
    assert differ(every.picture, none.picture)


@pytest.mark.parametrize(
    ("low", "high", "score", "what"),
    [
        (0.5, 0.2, 0.3, "is above"),
        (-1, 1, 0.3, "keep from"),
        (0, math.nan, 0.3, "keep up to"),
        (0, math.inf, 0.3, "keep up to"),
        ("0", 1, 0.3, "keep from"),
        (None, 1, 0.3, "keep from"),
        (0, 1, 7, "least score"),
        (0, 1, [0.3], "least score"),
    ],
)
def test_settings_that_make_no_sense_are_refused(subjects, photo, low, high, score, what):
    with pytest.raises(FreqFormerError, match=what):
        look(subjects["detection"], photo, low, high, score)


def test_classes_that_share_a_name_are_told_apart(write_classifier, photo):
    subject = load(write_classifier(labels=("crane", "crane", "cat")))
    assert set(look(subject, photo).of_given.shares) == {"crane (0)", "crane (1)", "cat"}


def test_filters_and_attention_are_drawn(subjects, photo):
    subject = subjects["classification"]
    for picture in (filters_of(subject), attention_of(subject, photo)):
        assert min(picture.size) > 200
        assert np.ptp(np.asarray(picture)) > 100


def test_a_model_without_attention_says_so(write_classifier, photo):
    with pytest.raises(FreqFormerError, match="no attention"):
        attention_of(load(write_classifier("test_gfnet")), photo)


@pytest.mark.parametrize(
    "task", ["classification", *(pytest.param(task, marks=pytest.mark.slow) for task in TASKS[1:])]
)
def test_every_example_can_be_looked_at(subjects, task, tmp_path):
    written = write_examples(tmp_path / "examples", subjects[task])
    assert list(written)[:2] == ["china", "flower"]
    for path in list(written.values())[1:]:
        with Image.open(path) as image:
            assert look(subjects[task], image.convert("RGB"), 0, 0.5).given


def test_a_model_of_digits_has_digits_for_examples(write_classifier, tmp_path):
    subject = load(write_classifier(labels=tuple("0123456789")))
    assert "a 3" in write_examples(tmp_path, subject)


@pytest.mark.parametrize(
    ("task", "words"), [("classification", "32×32"), ("detection", "a detector"), ("segmentation", "3 classes")]
)
def test_a_model_is_introduced(subjects, task, words):
    assert words in subjects[task].introduction()


@pytest.mark.slow
def test_an_exported_file_predicts_and_says_what_it_cannot_show(write_classifier, photo, tmp_path):
    from freqformer.tools import export

    export(write_classifier(), tmp_path / "model.onnx")
    subject = load(tmp_path / "model.onnx")
    seen = look(subject, photo, 0, 0.3)
    assert set(seen.of_given.shares) == set(seen.of_left.shares) == {"ape", "bee", "cat", "dog"}
    assert seen.of_given.shares != seen.of_left.shares
    for refused in (lambda: filters_of(subject), lambda: attention_of(subject, photo)):
        with pytest.raises(FreqFormerError, match="ONNX"):
            refused()
