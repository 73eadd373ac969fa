import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import freqformer.models  # noqa: F401  (registers the models)
from freqformer.errors import FreqFormerError
from freqformer.factory import create_model
from freqformer.visualize import agreement, attention, band_pass, response, spectrum
from freqformer.visualize.features import collect, placed_blocks, prepare
from freqformer.visualize.spectrum import measure_spectrum, ring_amplitudes


def low_pass(x):
    return band_pass(x.permute(0, 3, 1, 2), 0, 0.5).permute(0, 2, 3, 1)


@pytest.fixture
def network(network_of):
    """Two blocks: the first changes nothing, the second keeps what is at most half the Nyquist."""
    return network_of(lambda x: x, low_pass)


def test_an_identity_keeps_the_spectrum_and_a_low_pass_its_lower_half(network, photo):
    stem, same, low = measure_spectrum(network, [photo(seed=i) for i in range(3)])
    assert (stem.depth, same.depth, low.depth) == (0, 0.5, 1)
    assert low.grid == (8, 8)
    np.testing.assert_allclose(low.frequency, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(same.relative, stem.relative)
    # Of the ring at half the Nyquist, frequencies a little above it are gone too.
    np.testing.assert_allclose(low.relative[:2], stem.relative[:2], atol=1e-4)
    assert (low.relative[3:] < stem.relative[3:] - 4).all()
    assert low.high < stem.high - 4


def test_images_of_a_batch_count_as_those_alone(network, photo):
    images = [photo(seed=i) for i in range(20)]
    alone = np.mean([measure_spectrum(network, image)[0].relative for image in images], axis=0)
    np.testing.assert_allclose(measure_spectrum(network, images)[0].relative, alone, atol=1e-6)


sides = st.integers(2, 14)


@settings(deadline=None)
@given(sides, sides, st.integers(0, 2**20))
def test_noise_is_flat_whatever_the_grid(height, width, seed):
    random = torch.Generator().manual_seed(seed)
    frequency, relative = ring_amplitudes(torch.randn(1, height, width, 600, generator=random))
    assert len(frequency) == min(height, width) // 2 + 1
    assert frequency[0] == 0
    assert frequency[-1] <= 1
    # Frequencies that are their own conjugate have real values, whose mean log is 0.16 below that of complex ones.
    assert abs(relative).max() < 0.16 + 0.12


@settings(deadline=None)
@given(sides, sides, st.data())
def test_a_scale_or_the_order_of_the_axes_changes_nothing(height, width, data):
    grid = torch.randn(1, height, width, 3, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    expected = ring_amplitudes(grid)[1]
    np.testing.assert_allclose(ring_amplitudes(data.draw(st.floats(0.01, 100)) * grid)[1], expected, atol=1e-4)
    np.testing.assert_allclose(ring_amplitudes(grid.transpose(1, 2))[1], expected, atol=1e-4)


def test_a_wave_stands_at_its_own_frequency():
    rows = torch.arange(16.0)[:, None, None].expand(16, 16, 1)
    frequency, relative = ring_amplitudes((10 + torch.cos(2 * torch.pi * 6 * rows / 16))[None])
    assert frequency[1 + relative[1:].argmax()] == 6 / 8


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_tokens_of_a_timm_model_become_grids_without_what_comes_before(size):
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=size, depth=2, num_classes=3, reg_tokens=2, dynamic_img_size=True
    ).eval()
    before = []
    vit.blocks[0].register_forward_pre_hook(lambda _, args: before.append(args[0]))
    seen = collect(vit, torch.randn(2, 3, *size))
    grid = size[0] // 16, size[1] // 16
    assert [one.shape for one in seen.grids] == [(2, *grid, 192)] * 2
    torch.testing.assert_close(seen.stem.flatten(1, 2), before[-1][:, 3:])
    assert [block.kind for block in placed_blocks(vit)] == ["attention"] * 2


def test_looking_leaves_the_network_as_it_was(photo):
    model = create_model("test_freqformer").train()
    count = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    spectrum(model, photo())
    assert model.training
    assert count == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def test_a_pyramid_and_an_isotropic_network_share_a_figure(photo):
    models = {"pyramid": create_model("test_spectformer_h", img_size=64), "one grid": create_model("test_freqformer")}
    figure = spectrum(models, [photo(40, 60), photo(64, 64)])
    assert [axes.get_title() for axes in figure.axes][:3] == ["pyramid", "one grid", "high frequencies through depth"]
    kinds = {one.kind for one in measure_spectrum(models["pyramid"], photo())}
    assert kinds == {"stem", "spectral", "attention"}


@pytest.mark.parametrize("make", ["make_detector", "make_segmenter"])
def test_detectors_and_segmenters_prepare_images_of_any_sizes_themselves(request, tmp_path, photo, make):
    from freqformer.visualize import load_network

    model, _ = load_network(request.getfixturevalue(make)(tmp_path / "run"))
    stem, *blocks = measure_spectrum(model, [photo(48, 64), photo(80, 56)])
    assert stem.grid[0] > 8
    assert all(np.isfinite(block.relative).all() for block in blocks)
    assert len({block.grid for block in blocks}) > 1
    seen = collect(model, prepare(model, photo(48, 64))[None])
    assert seen.pixels.shape[2] % 32 == 0


def test_what_cannot_be_looked_at(photo):
    with pytest.raises(FreqFormerError, match="no image"):
        spectrum(create_model("test_freqformer"), [])
    with pytest.raises(FreqFormerError, match="cannot look into ResNet"):
        spectrum(timm.create_model("resnet10t", num_classes=2), photo())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision(photo, dtype):
    torch.manual_seed(0)
    model = create_model("test_freqformer", num_classes=3).eval()
    whole = measure_spectrum(model, photo())
    model.to(dtype)
    for one, other in zip(whole, measure_spectrum(model, photo()), strict=True):
        np.testing.assert_allclose(one.relative, other.relative, atol=0.05)
    assert response(model, photo()).axes
    assert attention(model, photo()).axes
    assert agreement(model, photo())(0, 2)["images with the same class"] == 1


@pytest.mark.parametrize("given", [{"in_chans": 1}, {"in_chans": 4}, {"img_size": 64}])
@pytest.mark.parametrize("draw", [spectrum, attention, response, agreement])
def test_networks_that_take_other_images_than_they_say(photo, given, draw):
    small = {"embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 2}
    model = timm.create_model("vit_tiny_patch16_224", **small, **given)
    with pytest.raises(FreqFormerError, match="does not take images of 3x224x224") as refusal:
        draw(model, photo())
    assert "\n" not in str(refusal.value)
