"""The training transform of detectors: whatever is done to an image, boxes, masks and labels go along."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torchvision import tv_tensors

from freqformer.data import detection_transform, seeded, shortest_edge
from freqformer.errors import FreqFormerError

SIDES = st.integers(24, 90)


def scene(height, width, boxes, masks=True):
    """A black image with a white box for each given one, and its target."""
    image = Image.new("RGB", (width, height))
    for left, top, right, bottom in boxes:
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=(255, 255, 255))
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = {
        "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width)),
        "labels": torch.arange(len(boxes)),
    }
    if masks:
        drawn = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(drawn, boxes, strict=True):
            mask[top:bottom, left:right] = 1
        target["masks"] = tv_tensors.Mask(drawn)
    return image, target


@st.composite
def one_box(draw):
    height, width = draw(SIDES), draw(SIDES)
    left, top = draw(st.integers(0, width - 8)), draw(st.integers(0, height - 8))
    return height, width, (left, top, draw(st.integers(left + 8, width)), draw(st.integers(top + 8, height)))


def extent(mask):
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=torch.float32)


@given(
    one_box(),
    st.sampled_from([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]),
    st.sampled_from([None, (0.5, 2.0), (1.0, 1.0), (1.5, 3.0)]),
    st.integers(0, 2**40),
)
def test_boxes_and_masks_move_with_the_image(case, flips, jitter, seed):
    height, width, box = case
    transform = detection_transform([32, 48, 64], 80, hflip=flips[0], vflip=flips[1], jitter_scale=jitter)
    with seeded(seed):
        image, target = transform(*scene(height, width, [box]))
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    assert max(image.shape) <= 80
    assert all(type(value) is torch.Tensor for value in (image, *target.values()))
    if not len(target["labels"]):
        assert jitter
        # What was cut off is not in the picture.
        assert (image > 200).float().mean() < 0.01
        return
    assert target["labels"].tolist() == [0]
    assert target["masks"].shape == (1, *image.shape[1:])
    assert target["masks"].unique().tolist() in ([0, 1], [1])
    # Each pixel of the edge is a mixture, and masks are resized to the nearest.
    scale = max(image.shape[1] / height, image.shape[2] / width, *(jitter or ()), 1) * 3
    assert (extent(image[0] > 127) - target["boxes"][0]).abs().max() <= 1 + scale
    assert (extent(target["masks"][0]) - target["boxes"][0]).abs().max() <= 1 + scale
    assert (target["boxes"] >= 0).all()
    assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
    assert (target["boxes"][:, 2:] <= torch.tensor(image.shape[:0:-1])).all()


@given(one_box(), st.integers(0, 99))
def test_without_jitter_the_boxes_are_exact(case, seed):
    height, width, (left, top, right, bottom) = case
    with seeded(seed):
        image, target = detection_transform([48], 1000, hflip=1)(*scene(height, width, [case[2]], masks=False))
    new_height, new_width = shortest_edge((height, width), 48, 1000)
    assert image.shape == (3, new_height, new_width)
    x, y = new_width / width, new_height / height
    expected = [new_width - right * x, top * y, new_width - left * x, bottom * y]
    assert target["boxes"][0].tolist() == pytest.approx(expected, abs=1e-3)
    assert set(target) == {"boxes", "labels"}


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.integers(1, 1500), st.integers(1, 2000))
def test_the_size_rule(size, shorter, longest):
    found = shortest_edge(size, shorter, longest)
    assert max(found) <= longest
    assert min(found) == min(shorter, max(1, min(found)))
    assert min(found) == shorter or max(found) == longest
    for new, old, other_new, other_old in (*zip(found, size, found[::-1], size[::-1], strict=True),):
        assert abs(new - other_new * old / other_old) <= 0.5 + 0.5 * old / other_old or new == 1 or other_new == 1


def test_the_size_rule_of_coco():
    assert shortest_edge((480, 640), 800, 1333) == (800, 1067)
    assert shortest_edge((427, 640), 800, 1333) == (800, 1199)
    assert shortest_edge((640, 200), 800, 1333) == (1333, 417)
    assert shortest_edge((1, 10_000), 800, 1333) == (1, 1333)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("jitter", [None, (0.1, 2.0)])
def test_images_without_instances(masks, jitter):
    transform = detection_transform([32], 64, jitter_scale=jitter, color_jitter=0.4)
    image, target = transform(*scene(30, 50, [], masks))
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)
    assert not masks or target["masks"].shape == (0, *image.shape[1:])


def test_what_is_too_small_is_dropped():
    boxes = [(0, 0, 400, 400), (10, 10, 14, 13), (100, 100, 300, 101)]
    for masks in (False, True):
        _, target = detection_transform([40], 80)(*scene(400, 400, boxes, masks))
        assert target["labels"].tolist() == [0]
        assert len(target["boxes"]) == 1
        assert not masks or len(target["masks"]) == 1


def test_a_mask_that_vanishes_takes_its_box_along():
    image, target = scene(400, 400, [(0, 0, 400, 400), (100, 100, 300, 300)])
    target["masks"][1] = 0
    target["masks"][1, 101, 101] = 1
    _, target = detection_transform([40], 80)(image, target)
    assert target["labels"].tolist() == [0]


def test_sizes_and_flips_are_drawn():
    transform = detection_transform([24, 32, 40], 80, vflip=0.5)
    pair = scene(60, 60, [(0, 0, 20, 10)])
    seen = set()
    for seed in range(60):
        with seeded(seed):
            image, target = transform(*pair)
        left, top = (target["boxes"][0, :2] > 0).tolist()
        seen.add((image.shape[1], left, top))
    assert len(seen) == 12


def test_the_jitter_of_scale_enlarges_and_shrinks():
    transform = detection_transform([40], 80, hflip=0, jitter_scale=(0.25, 2.0))
    pair = scene(40, 80, [(0, 0, 80, 40)])
    shapes = []
    for seed in range(40):
        with seeded(seed):
            image, target = transform(*pair)
        shapes.append(tuple(image.shape[1:]))
        assert target["boxes"].tolist() == [[0, 0, *shapes[-1][::-1]]]
    assert shapes.count((40, 80)) > 10
    assert min(shapes)[0] < 20
    assert all(10 <= height <= 40 and abs(width - 2 * height) <= 1 for height, width in shapes)


def test_colours_change_and_boxes_do_not():
    image, target = scene(48, 48, [(8, 8, 24, 24)])
    image.paste((90, 120, 60), (24, 24, 40, 40))
    plain, first = detection_transform([48], 48, hflip=0)(image, target)
    with seeded(1):
        jittered, second = detection_transform([48], 48, hflip=0, color_jitter=0.5)(image, target)
    assert not torch.equal(plain, jittered)
    assert jittered.dtype == torch.uint8
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_result_is_a_function_of_the_seed_and_inputs_stay():
    transform = pickle.loads(pickle.dumps(detection_transform([24, 32], 80, color_jitter=0.2, jitter_scale=(0.5, 2))))
    image, target = scene(40, 60, [(4, 5, 30, 33), (20, 10, 60, 40)])
    before = {key: value.clone() for key, value in target.items()}
    results = []
    for _ in range(2):
        with seeded(7):
            results.append(transform(image, target))
    assert torch.equal(results[0][0], results[1][0])
    for key in target:
        assert torch.equal(results[0][1][key], results[1][1][key])
        assert torch.equal(target[key], before[key])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": []}, "sizes of images must be at least 1 pixel"),
        ({"sizes": [0]}, "sizes of images must be at least 1 pixel"),
        ({"longest": 0}, "sizes of images must be at least 1 pixel"),
        ({"hflip": 1.5}, "probability of horizontal flip must be in"),
        ({"vflip": -1}, "probability of vertical flip must be in"),
        ({"color_jitter": 2}, "colour jitter must be in"),
        ({"jitter_scale": (0, 2)}, "jitter of the scale must satisfy"),
        ({"jitter_scale": (2, 1)}, "jitter of the scale must satisfy"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(FreqFormerError, match=message):
        detection_transform(**{"sizes": [32], "longest": 64, **arguments})
