import pickle
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from freqformer.data import (
    EpochBatchSampler,
    Images,
    Samples,
    eval_transform,
    mix,
    seeded,
    train_transform,
)
from freqformer.data.images import identify_number, read_array
from freqformer.errors import FreqFormerError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NORM = {"mean": MEAN, "std": STD}


def picture(height=32, width=32, seed=0):
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("shape", [(32, 32), (1, 1), (1, 300), (300, 2), (50, 70)])
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (8, 8), (16, 32), (48, 48), (40, 64)])
def test_train_gives_the_size_asked_for(size, shape):
    found = train_transform(size, reprob=0.5, **NORM)(picture(*shape))
    assert found.shape == (3, *size)
    assert found.dtype == torch.float32
    assert found.is_contiguous()


@pytest.mark.parametrize("padding", [None, 0, 1, 5])
def test_small_images_are_shifted_by_at_most_the_padding(padding):
    image = picture()
    plain = eval_transform((32, 32), crop_pct=1.0, **NORM)(image)
    transform = train_transform((32, 32), hflip=0, aa="none", padding=padding, **NORM)
    most = 4 if padding is None else padding
    shifts = set()
    for seed in range(30):
        torch.manual_seed(seed)
        found = transform(image)
        inner = found[:, most : 32 - most, most : 32 - most]
        for down in range(-most, most + 1):
            for right in range(-most, most + 1):
                window = plain[:, most + down : 32 - most + down, most + right : 32 - most + right]
                if window.shape == inner.shape and torch.allclose(window, inner, atol=1e-5):
                    shifts.add((down, right))
    assert shifts == {(0, 0)} if padding == 0 else len(shifts) > 3


@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(32, 32), (1, 1), (1, 20000), (20000, 1), (50, 70), (71, 50)])
@pytest.mark.parametrize("size", [(32, 32), (7, 7), (48, 64), (64, 40)])
def test_eval_gives_the_size_asked_for(size, shape, crop_pct):
    found = eval_transform(size, crop_pct=crop_pct, **NORM)(picture(*shape))
    assert found.shape == (3, *size)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(("shape", "crop_pct"), [((50, 70), 0.875), ((131, 60), 0.9), ((32, 32), 1.0)])
def test_eval_agrees_with_timm(shape, crop_pct):
    from timm.data import create_transform

    image = picture(*shape)
    theirs = create_transform((3, 48, 48), interpolation="bicubic", crop_pct=crop_pct, **NORM)
    found = eval_transform((48, 48), crop_pct=crop_pct, **NORM)(image)
    torch.testing.assert_close(found, theirs(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("crop_pct", [0.9, 1.0])
@pytest.mark.parametrize("shape", [(50, 70), (131, 60)])
def test_squashing_agrees_with_timm(shape, crop_pct):
    from timm.data import create_transform

    image = picture(*shape)
    given = {"interpolation": "bicubic", "crop_pct": crop_pct, "crop_mode": "squash", **NORM}
    theirs = create_transform((3, 48, 40), **given)
    torch.testing.assert_close(eval_transform((48, 40), **given)(image), theirs(image), atol=1e-5, rtol=1e-5)


CORNERS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10)]


def marked(height, width):
    """An image with a square of another colour in every corner."""
    pixels = np.full((height, width, 3), 120, np.uint8)
    side = max(2, min(height, width) // 4)
    for colour, down, right in zip(CORNERS, (0, 0, 1, 1), (0, 1, 0, 1), strict=True):
        rows = slice(height - side, None) if down else slice(side)
        columns = slice(width - side, None) if right else slice(side)
        pixels[rows, columns] = colour
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(48, 48), (24, 40), (28, 20)])
@pytest.mark.parametrize("shape", [(60, 120), (200, 40), (16, 16)])
def test_squashing_shows_the_whole_image(shape, size):
    image = marked(*shape)
    whole = eval_transform(size, crop_pct=1.0, crop_mode="squash", interpolation="bilinear", **NORM)(image)
    pixels = whole * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    corners = pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]].T * 255
    assert torch.allclose(corners, torch.tensor(CORNERS).float(), atol=8)
    train = train_transform(size, resize="squash", hflip=0, aa="none", interpolation="bilinear", **NORM)
    assert torch.equal(train(image), whole)


@pytest.mark.parametrize(("size", "larger"), [((48, 48), (54, 54)), ((28, 28), (32, 32)), ((24, 40), (27, 45))])
@pytest.mark.parametrize("aspect", [(1, 1), (1, 3), (2, 1)])
def test_a_random_crop_is_a_window_of_the_image_that_evaluation_cuts_the_middle_of(size, larger, aspect):
    # Covered as it is, so that every window of the image can be looked for.
    image = picture(larger[0] * aspect[0], larger[1] * aspect[1])
    given = {"interpolation": "bilinear", "crop_pct": 0.875, **NORM}
    shape = (image.height * larger[0] // image.height, image.width * larger[0] // image.height)
    if shape[1] < larger[1]:
        shape = (image.height * larger[1] // image.width, larger[1])
    covering = eval_transform(shape, interpolation="bilinear", crop_pct=1.0, **NORM)(image)
    windows = covering.unfold(1, size[0], 1).unfold(2, size[1], 1)
    transform = train_transform(size, resize="crop", hflip=0, aa="none", **given)
    places = set()
    for seed in range(10):
        with seeded(seed):
            apart = (windows - transform(image)[:, None, None]).abs().amax((0, 3, 4))
        assert apart.min() < 1e-5
        places.add(int(apart.argmin()))
    assert len(places) > 3
    middle = (windows - eval_transform(size, **given)(image)[:, None, None]).abs().amax((0, 3, 4))
    row, column = divmod(int(middle.argmin()), middle.shape[1])
    assert middle.min() < 1e-5
    assert abs(row - (middle.shape[0] - 1) / 2) <= 0.5
    assert abs(column - (middle.shape[1] - 1) / 2) <= 0.5


def test_eval_without_resizing_only_normalises():
    image = picture()
    expected = (torch.tensor(np.array(image)).double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    found = eval_transform((32, 32), crop_pct=1.0, **NORM)(image)
    torch.testing.assert_close(found.double(), expected.permute(2, 0, 1), atol=1e-5, rtol=0)


def test_train_keeps_flips_and_shifts():
    image = picture()
    plain = eval_transform((32, 32), crop_pct=1.0, **NORM)(image)
    small = train_transform((32, 32), aa="none", hflip=0.0, **NORM)
    # Somewhere within 4 pixels lies every crop, so the 24 x 24 in the middle of the image are always there.
    for seed in range(5):
        with seeded(seed):
            crop = small(image)
        middle = plain[:, 4:28, 4:28]
        windows = crop.unfold(1, 24, 1).unfold(2, 24, 1)
        assert (windows - middle[:, None, None]).abs().amax((0, 3, 4)).min() < 1e-6
    flip = train_transform((64, 64), aa="", hflip=1.0, scale=(1.0, 1.0), **NORM)
    large = eval_transform((64, 64), crop_pct=1.0, **NORM)(picture(64, 64))
    torch.testing.assert_close(flip(picture(64, 64)), large.flip(-1), atol=1e-5, rtol=0)


RAND = ["rand-m9-mstd0.5-inc1", "rand-m15-n3-p1-mmax20-mstd101-tweights", "rand-m10-n6-p1-inc1", "rand-t3a"]


@pytest.mark.parametrize(
    "aa", [*RAND, "augmix-m5-w4-b1", "augmix-m10", "original-mstd0.5", "originalr", "v0", "v0r", "3a"]
)
def test_policies_run_and_are_a_function_of_the_seed(aa):
    transform = pickle.loads(pickle.dumps(train_transform((32, 32), aa=aa, reprob=0.5, **NORM)))
    results = []
    for _ in range(2):
        for seed in range(40):
            with seeded(mix(seed)):
                results.append(transform(picture()))
        random.random()
    assert all(torch.equal(a, b) for a, b in zip(results[:40], results[40:], strict=True))
    assert len({result.sum().item() for result in results}) > 20


def test_posterize_to_no_bits_is_black():
    transform = train_transform((32, 32), aa="rand-m10-n60-p1-inc1", hflip=0.0, **NORM)
    policy = next(
        step.args[0] for step in transform.transforms if hasattr(step, "args") and hasattr(step.args[0], "ops")
    )
    op = next(op for op in policy.ops if op.name.startswith("Posterize"))
    assert np.asarray(op(picture())).max() == 0


def test_erasing_puts_noise():
    torch.manual_seed(0)
    found = train_transform((32, 32), aa="", reprob=1.0, **NORM)(Image.new("RGB", (32, 32)))
    assert found.unique().numel() > 20


@pytest.mark.parametrize("aa", ["rant-m9", "rand-mm9", "rand-incl", "rand-m9-", "augmix-x3", "rand-mstdinf", "random"])
def test_bad_policy(aa):
    with pytest.raises(FreqFormerError, match=f"augmentation '{aa}'"):
        train_transform((32, 32), aa=aa, **NORM)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hflip": 1.5}, "probability of horizontal flip must be in 0..1, not 1.5"),
        ({"reprob": -1}, "probability of random erasing"),
        ({"scale": (0.5, 0.1)}, "scale"),
        ({"scale": [0.5]}, "scale"),
        ({"ratio": (0, 1)}, "ratio"),
        ({"vflip": 2}, "probability of vertical flip"),
        ({"reprob": 0.5, "remode": "noise"}, "unknown mode of random erasing 'noise'"),
        ({"reprob": 0.5, "recount": 0}, "count of at least 1"),
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic'"),
        ({"resize": "stretch"}, "unknown resize 'stretch': choose random, crop or squash"),
        ({"resize": "crop", "crop_pct": 0}, "crop_pct must be above 0 and at most 1, not 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(FreqFormerError, match=re.escape(message)):
        train_transform((32, 32), **NORM, **arguments)


def test_a_mode_that_timm_alone_has_is_refused():
    with pytest.raises(FreqFormerError, match="unknown crop_mode 'border' of the model: choose --resize squash"):
        eval_transform((32, 32), crop_mode="border", **NORM)


@pytest.mark.parametrize("crop_pct", [0, 1.1])
def test_bad_crop(crop_pct):
    with pytest.raises(FreqFormerError, match="crop_pct"):
        eval_transform((32, 32), crop_pct=crop_pct, **NORM)


def samples(transform, n=12, seed=3):
    from functools import partial

    pixels = np.random.RandomState(1).randint(0, 256, (n, 16, 16, 3), np.uint8)
    read, identify = partial(read_array, pixels), partial(identify_number, "noise")
    return Samples(Images(["a", "b", "c"], np.arange(n) % 3, np.arange(n), read, identify), transform, seed)


def test_training_samples_are_a_function_of_seed_epoch_and_index():
    transform = train_transform((16, 16), reprob=0.5, **NORM)
    data, other = samples(transform), samples(transform, seed=4)
    image = data[(2, 5)]["image"]
    torch.rand(3)
    assert torch.equal(image, data[(2, 5)]["image"])
    assert not torch.equal(image, data[(3, 5)]["image"])
    assert not torch.equal(image, other[(2, 5)]["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_workers(workers):
    data = samples(train_transform((16, 16), reprob=0.5, **NORM))
    sampler = EpochBatchSampler(12, 5, 0, lambda: (1, 0))
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    for batch, keys in zip(loader, sampler, strict=True):
        assert batch["image"].shape == (5, 3, 16, 16)
        assert batch["target"].dtype == batch["index"].dtype == torch.int64
        assert batch["index"].tolist() == [index for _, index, _ in keys]
        assert torch.equal(batch["target"], batch["index"] % 3)
        assert torch.equal(batch["image"], torch.stack([data[key]["image"] for key in keys]))


def test_evaluation_samples():
    batch = next(iter(DataLoader(samples(eval_transform((16, 16), **NORM)), batch_size=4)))
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert batch["target"].tolist() == [0, 1, 2, 0]


def test_colour_jitter_is_for_runs_without_a_policy():
    image = picture(48, 48)
    settings = {"hflip": 0.0, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), **NORM}
    plain = train_transform((48, 48), aa="none", **settings)(image)
    torch.manual_seed(0)
    assert not torch.allclose(
        train_transform((48, 48), aa="none", color_jitter=0.4, **settings)(image), plain, atol=0.1
    )
    with seeded(1):
        policy = train_transform((48, 48), **settings)(image)
    with seeded(1):
        assert torch.equal(train_transform((48, 48), color_jitter=0.4, **settings)(image), policy)


def test_a_vertical_flip():
    image = picture(48, 48)
    settings = {"aa": "none", "hflip": 0.0, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), **NORM}
    upright = train_transform((48, 48), **settings)(image)
    assert torch.equal(train_transform((48, 48), vflip=1.0, **settings)(image), upright.flip(1))


def test_the_crop_keeps_to_its_ratio_and_random_interpolation_draws():
    image = picture(64, 64)
    results = set()
    for seed in range(12):
        with seeded(seed):
            transform = train_transform(
                (48, 48), aa="none", hflip=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0), interpolation="random", **NORM
            )
            results.add(transform(image).sum().item())
    assert len(results) == 2


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_modes_of_erasing(mode):
    torch.manual_seed(0)
    erased = train_transform((48, 48), aa="", reprob=1.0, remode=mode, recount=3, hflip=0.0, **NORM)(
        Image.new("RGB", (48, 48))
    )
    colours = erased.flatten(1).unique(dim=1).shape[1]
    assert {"pixel": colours > 20, "rand": 1 < colours <= 4, "const": colours == 2}[mode]
