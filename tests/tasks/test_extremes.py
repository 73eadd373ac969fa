"""The examples that an evaluation keeps are its best and its worst."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from freqformer.tasks.extremes import Extremes
from freqformer.tasks.image_scores import f1_of_boxes, miou_of_counts
from freqformer.tasks.pictures import draw_predictions

VALUES = st.lists(st.one_of(st.sampled_from([0.0, 1.0, math.nan, math.inf]), st.floats(0, 2)), max_size=40)


def in_order(values):
    return sorted(range(len(values)), key=lambda i: (math.inf if math.isnan(values[i]) else values[i], i))


def indices(examples):
    return [example.index for example in examples]


def seen(values, count, numbers=None):
    extremes = Extremes(count)
    for i in range(len(values)) if numbers is None else numbers:
        extremes.add(values[i], i, lambda i=i: f"found {i}")
    return extremes


@given(VALUES, st.integers(1, 8))
def test_they_are_those_of_all_values_and_never_both(values, count):
    extremes, order = seen(values, count), in_order(values)
    assert indices(extremes.smallest()) == order[: min(count, -(-len(values) // 2))]
    assert indices(extremes.largest()) == order[::-1][: min(count, len(values) // 2)]
    assert all(one.found == f"found {one.index}" for one in [*extremes.smallest(), *extremes.largest()])


@given(VALUES, st.integers(1, 8), st.integers(1, 4))
def test_several_processes_agree_on_those_of_one(values, count, processes):
    shares = [seen(values, count, range(rank, len(values), processes)) for rank in range(processes)]
    # Lock step: each process's list of the first exchange, then of the second.
    first = [place for share in shares for place in _sent(share)]
    second = [example for share in shares for example in _sent(share, first)]
    one = seen(values, count)
    for share in shares:
        answers = iter([first, second])
        share.agree(lambda own, answers=answers: next(answers))
        assert indices(share.smallest()) == indices(one.smallest())
        assert indices(share.largest()) == indices(one.largest())


def _sent(share, *answers):
    """What a process sends after it has got the answers so far."""
    copy = Extremes(share.count)
    copy._low, copy._high = list(share._low), list(share._high)
    sent, rest = [], list(answers)

    def exchange(own):
        sent.append(own)
        return rest.pop(0) if rest else []

    copy.agree(exchange)
    return sent[len(answers)]


def test_what_was_found_is_asked_for_those_that_are_kept_alone():
    asked = []
    extremes = Extremes(1)
    for i, value in enumerate([0.5, 0.1, 0.9, 0.5, 0.3]):
        extremes.add(value, i, lambda i=i: asked.append(i))
    assert asked == [0, 1, 2]


BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 100, 100]])
LABELS = torch.tensor([0, 1, 0])
CROWD = torch.tensor([False, False, True])


def f1(found, labels, crowd=CROWD):
    return f1_of_boxes(torch.tensor(found).float().reshape(-1, 4), torch.tensor(labels).long(), BOXES, LABELS, crowd)


def test_f1_of_boxes_by_hand():
    right, other = [0, 0, 10, 9], [20, 20, 30, 30]
    assert f1([right, other], [0, 1]) == 1
    assert f1([right], [0]) == 2 / 3
    # Found twice: the second one has no object left, but lies in a crowd of its class.
    assert f1([right, right], [0, 0]) == 2 / 3
    assert f1([right, right], [0, 0], torch.tensor([False, False, False])) == 2 / 5
    # Of another class, and in no crowd of that.
    assert f1([right, other], [1, 1]) == 2 / 4
    assert f1([], []) == 0
    assert f1_of_boxes(torch.zeros(0, 4), LABELS[:0], BOXES[2:], LABELS[2:], CROWD[2:]) is None
    assert f1_of_boxes(BOXES[:1], LABELS[:1], BOXES[:0], LABELS[:0], CROWD[:0]) == 0


def test_miou_of_counts_by_hand():
    # A mask of classes 0, 0 and 1, predicted as they are; class 2 is not there.
    assert miou_of_counts(torch.tensor([[2, 0, 0], [0, 1, 0], [0, 0, 0]])) == 1
    # 1 of 2 pixels of class 0, and 1 of 2 where class 1 is or is predicted.
    assert miou_of_counts(torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0]])) == 0.5
    assert miou_of_counts(torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]])) == 0.75
    assert miou_of_counts(torch.zeros(3, 3).long()) is None


def test_predictions_of_odd_names_and_sizes_are_drawn(tmp_path):
    sizes = [(1, 1), (5000, 3), (3, 5000), (8, 8), (640, 480), (30, 30), (2, 2), (90, 20), (4, 4)]
    names = ["a" * 5000, "$x$", "漢字", "\n\t\x00", "", "<b>", "\udcff", "ü", "b"]
    images = [Image.new("RGB", size, (9, 99, 200)) for size in sizes]
    draw_predictions(images, names, [0.5] * 9, names[::-1], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        picture.load()
        assert picture.width < 1500
        assert 300 < picture.height < 600
