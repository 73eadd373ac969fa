import pytest
import torch

from freqformer.data import DeviceAugmentation, eval_transform, mix, seeded, train_transform
from freqformer.data.images import read_array
from freqformer.errors import FreqFormerError

NORM = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
POLICIES = ["rand-m9-mstd0.5-inc1", "rand-m10-n3-p1-inc1", "original"]


def batch(count=6, side=32):
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)).byte()


def test_with_everything_off_it_normalises_as_on_the_cpu():
    pixels = batch(2)
    found = DeviceAugmentation(aa="none", **NORM)(pixels)
    cpu = eval_transform((32, 32), crop_pct=1.0, **NORM)
    for image, expected in zip(pixels, found, strict=True):
        picture = read_array(image.permute(1, 2, 0)[None].numpy(), 0)
        torch.testing.assert_close(cpu(picture), expected, atol=1e-5, rtol=1e-5)


def test_the_cpu_hands_over_the_bytes_of_its_crop():
    picture = read_array(batch(1, 70).permute(0, 2, 3, 1).numpy(), 0)
    with seeded(1):
        handed = train_transform((40, 40), aa="rand-m9-inc1", reprob=1.0, on_device=True, **NORM)(picture)
    with seeded(1):
        whole = train_transform((40, 40), aa="none", **NORM)(picture)
    assert handed.dtype == torch.uint8
    torch.testing.assert_close(DeviceAugmentation(aa="none", **NORM)(handed[None])[0], whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("aa", POLICIES)
def test_it_is_a_function_of_torchs_seed_and_differs_by_image(aa):
    augment = DeviceAugmentation(aa=aa, reprob=0.5, recount=2, **NORM)
    same = batch(1).expand(12, -1, -1, -1)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(mix(seed))
        results.append(augment(same))
    assert results[0].shape == same.shape
    assert results[0].dtype == torch.float32
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert len({image.sum().item() for image in results[0]}) > 3


def test_magnitude_zero_changes_little_and_ten_much():
    pixels = batch(1).expand(40, -1, -1, -1)
    plain = DeviceAugmentation(aa="none", **NORM)(pixels)
    torch.manual_seed(0)
    # Of the operations at magnitude 0 only solarising, equalising and stretching the contrast do anything.
    moved = [
        (DeviceAugmentation(aa=f"rand-m{m}-n1-p1-inc1", **NORM)(pixels) - plain).abs().mean((1, 2, 3)) for m in (0, 10)
    ]
    assert (moved[0] < 0.05).float().mean() > 0.6 > (moved[1] < 0.05).float().mean()


def test_jitter_where_there_is_no_policy():
    torch.manual_seed(0)
    plain = DeviceAugmentation(aa="none", **NORM)(batch())
    assert not torch.allclose(DeviceAugmentation(aa="none", color_jitter=0.4, **NORM)(batch()), plain, atol=0.1)


@pytest.mark.parametrize(
    "aa", ["augmix-m5-w4", "rand-m9", "rand-m9-inc0", "rand-m9-t3a-inc1", "v0", "3a", "original-mstd0.5", "x"]
)
def test_policies_without_a_counterpart(aa):
    with pytest.raises(FreqFormerError, match=f"no counterpart of --aa {aa}"):
        DeviceAugmentation(aa=aa, **NORM)


def test_images_that_were_normalised_before():
    with pytest.raises(FreqFormerError, match="uint8"):
        DeviceAugmentation(aa="none", **NORM)(batch().float())
