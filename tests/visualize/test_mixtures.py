"""What images choose of the banks of dynamic filters."""

import numpy as np
import pytest
import torch
from PIL import Image

from freqformer import create_model
from freqformer.errors import FreqFormerError
from freqformer.layers import DynamicFilter
from freqformer.visualize import mixtures


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model("test_dfformer", num_classes=3)


@pytest.fixture
def images():
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 256, (36, 50, 3), dtype=np.uint8)) for _ in range(3)]


def pictures(figure, what):
    return [axes.images[0].get_array() for axes in figure.axes if axes.get_label() == what]


def choose(model, filter_):
    """Let every dynamic filter take one filter of its bank, whatever it sees."""
    for module in model.modules():
        if isinstance(module, DynamicFilter):

            def route(_, __, scores):
                answer = torch.zeros_like(scores).unflatten(1, (4, -1))
                answer[:, filter_] = 100.0
                return answer.flatten(1)

            module.routing.register_forward_hook(route)


def test_a_model_that_always_takes_one_filter(model, images):
    choose(model, 2)
    figure = mixtures(model, images)
    for shares in pictures(figure, "shares"):
        assert shares.shape == (4, 3)
        np.testing.assert_allclose(shares, [[0] * 3, [0] * 3, [1] * 3, [0] * 3], atol=1e-6)
    first = pictures(figure, "impulse")[0]
    # Four of the bank, then two channels of each of three images: 8 tokens and a gap of one each.
    tiles = [first[:, 9 * place : 9 * place + 8] for place in range(10)]
    for mixed in tiles[4:]:
        np.testing.assert_allclose(mixed, tiles[2], atol=1e-6)
    assert not np.allclose(tiles[0], tiles[2])


def test_shares_are_of_a_whole_and_the_images_own(model, images):
    for name, parameter in model.named_parameters():
        if "routing" in name:
            parameter.data *= 50
    together = pictures(mixtures(model, images), "shares")
    for shares in together:
        np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)
    (alone, *_) = pictures(mixtures(model, images[1]), "shares")
    np.testing.assert_allclose(alone[:, 0], together[0][:, 1], atol=1e-6)
    assert not np.allclose(together[-1][:, 0], together[-1][:, 1])


def test_the_model_is_left_as_it_was(model, images):
    model.train()
    mixtures(model, images[0])
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_many_images_are_not_all_drawn(model, images):
    figure = mixtures(model, images * 12)
    assert pictures(figure, "shares")[0].shape == (4, 32)
    assert any("the first 32 of 36 images" in text.get_text() for text in figure.texts)


def test_detectors_choose_too(images):
    pytest.importorskip("segmentation_models_pytorch", reason="the extra dense is not installed")
    from freqformer import create_detector, create_segmenter

    small = {"fpn_channels": 8, "anchor_sizes": [8, 16, 24, 32, 48], "proposals": 20, "size": (48, 80)}
    detector = create_detector("test_dfformer", ["a"], detector="maskrcnn", **small)
    segmenter = create_segmenter("test_dfformer", ["a", "b"])
    for network in (detector.eval(), segmenter.eval()):
        assert pictures(mixtures(network, images), "shares")[0].shape == (4, 3)


def test_what_has_nothing_to_choose_is_refused(model, images, tmp_path):
    with pytest.raises(FreqFormerError, match="no dynamic filters"):
        mixtures(create_model("test_gfnet"), images)
    with pytest.raises(FreqFormerError, match="no images"):
        mixtures(model, [])
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(FreqFormerError, match="cannot read image"):
        mixtures(model, tmp_path / "a.png")
