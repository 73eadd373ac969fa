import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from freqformer.data import (
    IGNORED,
    colour_mask,
    overlay,
    seeded,
    segmentation_eval_transform,
    segmentation_transform,
)
from freqformer.errors import FreqFormerError

BLOCK = 8


def scene(rows, columns, seed=0):
    """A random mosaic of two classes and ignored blocks, which the image shows too.

    Red is bright where the class is 1, green where there is none, blue everywhere.
    """
    blocks = np.random.RandomState(seed).choice([0, 1, IGNORED], (rows, columns)).astype(np.uint8)
    mask = np.kron(blocks, np.ones((BLOCK, BLOCK), np.uint8))
    image = 255 * np.stack([mask == 1, mask == IGNORED, mask >= 0], axis=-1).astype(np.uint8)
    return Image.fromarray(image), tv_tensors.Mask(torch.from_numpy(mask))


@settings(max_examples=60, deadline=None)
@given(
    crop=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    rows=st.integers(2, 7),
    columns=st.integers(2, 7),
    relative=st.none() | st.floats(0.5, 1.5),
    scale=st.tuples(st.floats(0.5, 1), st.floats(1, 2)),
    hflip=st.sampled_from([0, 0.5, 1]),
    seed=st.integers(0, 1000),
)
def test_image_and_mask_move_together(crop, rows, columns, relative, scale, hflip, seed):
    shorter = None if relative is None else round(relative * BLOCK * min(rows, columns))
    transform = segmentation_transform(crop, shorter=shorter, scale=scale, hflip=hflip)
    with seeded(seed):
        image, mask = transform(*scene(rows, columns, seed))
    assert image.dtype == torch.uint8
    assert mask.dtype == torch.int64
    assert image.shape == (3, *crop)
    assert mask.shape == crop
    red, green, blue = image
    padded = blue == 0
    assert (blue[~padded] == 255).all()
    assert not red[padded].any()
    assert not green[padded].any()
    assert (mask[padded] == IGNORED).all()
    # Padding is at the right and the bottom.
    shown = (~padded).nonzero().amax(0) + 1
    assert not padded[: shown[0], : shown[1]].any()
    # Even in a corner of a block, a quarter of what a pixel mixes is the block's own.
    assert (mask[red > 210] == 1).all()
    assert (mask[(green > 210) & ~padded] == IGNORED).all()
    assert (mask[(red < 45) & (green < 45) & ~padded] == 0).all()


@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    shorter=st.none() | st.integers(1, 60),
)
@settings(max_examples=40, deadline=None)
def test_scales_keep_the_aspect(shape, shorter):
    image = Image.new("RGB", shape[::-1], "white")
    mask = tv_tensors.Mask(torch.zeros(shape, dtype=torch.uint8))
    found, kept = segmentation_eval_transform(shorter)(image, mask)
    assert found.dtype == torch.uint8
    assert kept.dtype == torch.int64
    assert torch.equal(kept, mask.to(torch.int64))
    height, width = found.shape[1:]
    factor = 1 if shorter is None else shorter / min(shape)
    if max(shape) <= 16 * min(shape):
        assert abs(height - shape[0] * factor) <= 0.5
        assert abs(width - shape[1] * factor) <= 0.5
    else:
        assert max(height, width) <= 16 * (shorter or max(shape))


def test_a_line_of_pixels_stays_small():
    image, mask = Image.new("RGB", (20000, 1)), tv_tensors.Mask(torch.zeros((1, 20000), dtype=torch.uint8))
    assert segmentation_eval_transform(512)(image, mask)[0].shape == (3, 1, 16 * 512)
    found = segmentation_transform((64, 64), shorter=512)(image, mask)
    assert found[0].shape == (3, 64, 64)


def test_evaluation_without_resizing_changes_nothing():
    image, mask = scene(3, 4)
    found, kept = segmentation_eval_transform(None)(image, mask)
    assert torch.equal(found, torch.from_numpy(np.array(image)).permute(2, 0, 1))
    assert torch.equal(kept, mask.to(torch.int64))


def test_flips_and_crops_happen():
    image, mask = scene(6, 6)
    whole = segmentation_transform((48, 48), shorter=None, scale=(1, 1), hflip=1.0)
    assert torch.equal(whole(image, mask)[1], mask.to(torch.int64).flip(-1))
    transform = segmentation_transform((16, 16), shorter=None, scale=(1, 1), hflip=0.0)
    windows = mask.unfold(0, 16, 1).unfold(1, 16, 1)
    places = set()
    for _ in range(30):
        equal = (windows == transform(image, mask)[1]).all(-1).all(-1)
        assert equal.any()
        places.add(tuple(equal.nonzero()[0].tolist()))
    assert len(places) > 15


def test_jitter_changes_the_image_alone():
    image, mask = scene(4, 4)
    plain = segmentation_transform((40, 40), shorter=24, scale=(1, 1), hflip=0.0)
    jittered = segmentation_transform((40, 40), shorter=24, scale=(1, 1), hflip=0.0, color_jitter=0.5)
    with seeded(1):
        expected = plain(image, mask)
    with seeded(1):
        found = jittered(image, mask)
    assert torch.equal(found[1], expected[1])
    assert not torch.equal(found[0], expected[0])
    assert not found[0][:, 24:].any()
    assert not found[0][:, :, 24:].any()


def test_max_share_avoids_crops_of_one_class():
    values = torch.zeros((64, 64), dtype=torch.uint8)
    values[:20, :20] = 1
    values[40:] = IGNORED
    image, mask = Image.new("RGB", (64, 64)), tv_tensors.Mask(values)
    shares = {}
    for most in (0.75, 1.0):
        transform = segmentation_transform((16, 16), shorter=None, scale=(1, 1), max_share=most)
        with seeded(0):
            masks = [transform(image, mask)[1] for _ in range(100)]
        shares[most] = np.mean([bool((crop == 1).any()) for crop in masks])
    assert shares[0.75] > shares[1.0] + 0.2
    # Where no crop will do one is taken all the same.
    for only in (0, IGNORED):
        assert (transform(image, tv_tensors.Mask(torch.full_like(values, only)))[1] == only).all()
        one = segmentation_transform((16, 16), shorter=None, max_share=0.1)(image, torch.full_like(values, only))
        assert (one[1] == only).all()


def test_random_through_the_global_generators_alone():
    transform = segmentation_transform((32, 32), shorter=30, color_jitter=0.3, max_share=0.75)
    again = pickle.loads(pickle.dumps(transform))
    results = []
    for each in (transform, again):
        for seed in range(10):
            with seeded(seed):
                results.append(each(*scene(5, 6)))
        torch.rand(3)
    for one, other in zip(results[:10], results[10:], strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert len({int(image.long().sum()) for image, _ in results}) == 10
    pickle.loads(pickle.dumps(segmentation_eval_transform(20)))(*scene(2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": (0, 5)}, "the crop must be at least 1x1 pixels, not 0x5"),
        ({"scale": (2, 1)}, "random scale must satisfy 0 < low <= high"),
        ({"scale": (0, 1)}, "random scale"),
        ({"hflip": 1.5}, "probability of horizontal flip must be in 0..1, not 1.5"),
        ({"color_jitter": -1}, "colour jitter must be at least 0"),
        ({"max_share": 0}, "largest share of a crop must be above 0 and at most 1, not 0"),
        ({"shorter": 0}, "shorter side must be at least 1 pixel, not 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(FreqFormerError, match=message.replace(".", r"\.")):
        segmentation_transform(**{"crop": (8, 8), "shorter": None, **arguments})


def test_bad_side_of_evaluation():
    with pytest.raises(FreqFormerError, match="shorter side"):
        segmentation_eval_transform(0)


PALETTE = np.array([[200, 0, 0], [0, 100, 50]], dtype=np.uint8)


@given(st.floats(0, 1), st.integers(0, 100))
def test_overlays(alpha, seed):
    random = np.random.RandomState(seed)
    image = random.randint(0, 256, (7, 9, 3)).astype(np.uint8)
    mask = random.choice([0, 1, IGNORED], (7, 9))
    before = image.copy()
    found = overlay(image, mask, PALETTE, alpha)
    np.testing.assert_array_equal(image, before)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[mask == IGNORED], image[mask == IGNORED])
    for label in (0, 1):
        expected = (1 - alpha) * image[mask == label] + alpha * PALETTE[label]
        assert np.abs(found[mask == label] - expected).max(initial=0) <= 0.5 + 1e-9


def test_overlays_refuse():
    image = np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(FreqFormerError, match="cannot lie over an image"):
        overlay(image, np.zeros((6, 4), np.uint8), PALETTE)
    with pytest.raises(FreqFormerError, match="alpha"):
        overlay(image, np.zeros((4, 6), np.uint8), PALETTE, 1.5)


def test_a_colour_mask_is_numbers_and_colours(tmp_path):
    mask = np.array([[0, 1, IGNORED]])
    colour_mask(mask, PALETTE).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as found:
        assert found.mode == "P"
        np.testing.assert_array_equal(np.asarray(found), mask)
        colours = np.asarray(found.convert("RGB"))[0]
    np.testing.assert_array_equal(colours[:2], PALETTE)
