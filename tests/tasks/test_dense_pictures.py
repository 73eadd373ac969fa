"""Pictures of detections: what they change, what they leave, and names that are hard to draw."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from freqformer.tasks.dense_pictures import class_colours, draw_instances, draw_per_class, page

GREY = (90, 90, 90)
NO_BOXES = torch.zeros(0, 4)
ODD = ["$x_1$ & $", "漢字\n\t\x00", "a" * 60, "", "\\frac{1}{2}", "%s {} <b>"]


def _read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def _drawn(*arguments, size=(800, 600), **more):
    """Where the picture of a grey image differs from it."""
    colours = class_colours(["cell", "other", *ODD])
    picture = np.asarray(draw_instances(Image.new("RGB", size, GREY), *arguments, colours=colours, **more))
    return (picture != GREY).any(axis=2)


@given(count=st.integers(0, 200))
def test_every_class_has_its_own_colour(count):
    colours = class_colours([str(number) for number in range(count)])
    assert len(set(colours.values())) == len(colours) == count
    assert all(0 <= part <= 255 for colour in colours.values() for part in colour)


@pytest.mark.parametrize("masks", [None, torch.zeros(0, 1, 60, 80)])
@pytest.mark.parametrize(("side", "factor"), [(100, 4), (256, 3), (400, 2), (640, 1), (4000, 1)])
def test_small_images_are_enlarged_and_nothing_found_changes_nothing(side, factor, masks):
    changed = _drawn(NO_BOXES, [], torch.zeros(0), masks, size=(side, side // 2))
    assert changed.shape == (factor * (side // 2), factor * side)
    assert not changed.any()


def test_a_box_is_drawn_around_its_pixels_with_its_name_above():
    changed = _drawn(torch.tensor([[100.0, 200.0, 300.0, 400.0]]), ["cell"])
    assert changed[200:400, 100].all()
    assert changed[200:400, 300].all()
    assert changed[200, 100:300].all()
    assert changed[400, 100:300].all()
    assert not changed[205:395, 105:295].any()
    assert changed[185:200, 100:120].any()
    changed[180:402, 98:302] = False
    assert not changed.any()


def test_a_score_makes_the_name_longer():
    box = torch.tensor([[100.0, 200.0, 300.0, 400.0]])
    assert _drawn(box, ["cell"], torch.tensor([0.5])).sum() > _drawn(box, ["cell"]).sum()


@pytest.mark.parametrize("size", [(800, 600), (200, 150)])
@pytest.mark.parametrize("shares", [False, True])
def test_a_mask_changes_its_pixels_alone(size, shares):
    width, height = size
    inside = torch.zeros(1, height, width, dtype=torch.bool)
    inside[0, 30:70, 40:90] = True
    inside[0, 45:55, 60:70] = False
    # The box lies far away, and its name too.
    box = torch.tensor([[120.0, 100.0, 130.0, 110.0]])
    changed = _drawn(box, ["cell"], None, inside[:, None] * 0.7 if shares else inside, size=size)
    factor = len(changed) // height
    expected = inside[0].numpy().repeat(factor, axis=0).repeat(factor, axis=1)
    assert (changed[: 75 * factor, : 100 * factor] == expected[: 75 * factor, : 100 * factor]).all()


def test_what_is_behind_a_mask_can_be_seen_and_its_rim_is_solid():
    image = Image.new("RGB", (800, 600), GREY)
    mask = torch.zeros(1, 600, 800, dtype=torch.bool)
    mask[0, 100:300, 100:300] = True
    picture = draw_instances(
        image, torch.tensor([[700, 500, 710, 510]]), ["cell"], None, mask, colours={"cell": (255, 0, 0)}
    )
    assert picture.getpixel((100, 200)) == (255, 0, 0)
    red, green, blue = picture.getpixel((200, 200))
    assert 90 < red < 255
    assert 0 < green == blue < 90


def test_a_crowd_has_no_names_but_a_rarer_class_has():
    crowd = torch.tensor([[20.0 * number, 500, 20 * number + 10, 520] for number in range(31)])
    lonely = torch.tensor([[100.0, 200.0, 300.0, 400.0]])
    changed = _drawn(torch.cat([crowd, lonely]), ["cell"] * 31 + ["other"])
    assert not changed[470:500].any()
    assert changed[185:200, 100:120].any()
    assert _drawn(crowd[:30], ["cell"] * 30)[485:500].any()


coordinate = st.floats(-50, 850) | st.sampled_from([0.0, 799.0, 1e6])


@settings(max_examples=30, deadline=None)
@given(
    boxes=st.lists(st.tuples(*[coordinate] * 4), max_size=5),
    side=st.sampled_from([1, 20, 300, 800]),
    names=st.lists(st.sampled_from(ODD), min_size=5, max_size=5),
)
def test_any_box_and_any_name_can_be_drawn(boxes, side, names):
    image = Image.new("L", (side, max(1, side // 3)), 90)
    picture = draw_instances(
        image,
        torch.tensor(boxes).reshape(-1, 4),
        names[: len(boxes)],
        torch.rand(len(boxes)),
        colours=class_colours(ODD),
    )
    assert picture.mode == "RGB"
    assert picture.width % side == 0


def test_a_page_holds_pictures_of_any_size(tmp_path):
    rows = [[Image.new("RGB", size, GREY)] * 2 for size in ((640, 480), (100, 900), (1, 1), (3000, 200))]
    page(rows, ["ground $truth", "漢"], tmp_path / "page.png", legend=class_colours([*ODD, *map(str, range(50))]))
    page(rows[:1], ["a", "b"], tmp_path / "small.png")
    large, small = (_read(tmp_path / name) for name in ("page.png", "small.png"))
    assert large.shape[1] == small.shape[1]
    assert len(large) > len(small) > 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.png", "small.png"]


@pytest.mark.parametrize("count", [0, 1, 80, pytest.param(400, marks=pytest.mark.slow)])
def test_a_bar_for_each_class(count, tmp_path):
    rows = [
        {"name": ODD[number % len(ODD)], "instances": number, "AP": math.nan if number % 3 else number / 400}
        for number in range(count)
    ]
    draw_per_class(rows, tmp_path / "bars.png")
    assert len(_read(tmp_path / "bars.png")) >= 120 * min(60, 0.2 * count)


def test_bars_of_another_score(tmp_path):
    draw_per_class([{"name": "sky", "IoU": 0.9}, {"name": "road", "IoU": 0.2}], tmp_path / "bars.png", "IoU")
    blue = (np.abs(_read(tmp_path / "bars.png") - (31, 119, 180)).max(axis=2) < 8).sum(axis=1)
    first, last = blue[blue > 0][[2, -3]]
    assert 4 < first / last < 5
