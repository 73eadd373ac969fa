"""What the pyramids add: grids, features, token labels, filters on other grids."""

import copy
import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import freqformer
from freqformer import FreqFormerError
from freqformer.layers import GlobalFilter
from freqformer.ops import use_lowering

PYRAMIDS = ["test_gfnet_h", "test_spectformer_h", "test_dfformer", "test_cdfformer", "test_gfformer", "test_afno"]
EVERY = ["test_gfnet", "test_freqformer", *PYRAMIDS]


def make(name, **arguments):
    torch.manual_seed(0)
    model = freqformer.create_model(name, **arguments)
    for key, parameter in model.named_parameters():
        if ".mixer.w" in key or ".mixer.b" in key:
            # As initialised, AFNO's outputs are below its threshold.
            torch.nn.init.normal_(parameter)
    return model


shared_model = functools.cache(make)


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def grids_of(name, height, width):
    """The grids of the four stages: patches are padded, overlapping convolutions have their own arithmetic."""
    if "gfnet" in name:
        first, halve = (lambda n: math.ceil(n / 4)), (lambda n: math.ceil(n / 2))
    elif "spectformer" in name:
        first, halve = (lambda n: ((n - 1) // 2 + 1 - 1) // 2 + 1), (lambda n: (n - 1) // 2 + 1)
    else:
        first, halve = (lambda n: (n + 4 - 7) // 4 + 1), (lambda n: (n - 1) // 2 + 1)
    sides = [[first(height)], [first(width)]]
    for side in sides:
        while len(side) < 4:
            side.append(halve(side[-1]))
    return list(zip(*sides, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PYRAMIDS), st.integers(3, 70), st.integers(3, 70), st.booleans())
def test_any_image_size(name, height, width, training):
    model = shared_model(name).train(training)
    features = model.forward_intermediates(images(2, 3, height, width), intermediates_only=True)
    assert [f.shape for f in features] == [
        (2, dim, *grid) for dim, grid in zip((8, 16, 24, 32), grids_of(name, height, width), strict=True)
    ]
    logits = model(images(2, 3, height, width))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("resample", ["stretch", "crop-pad"])
@pytest.mark.parametrize("size", [(48, 48), (40, 72), (64, 24)])
def test_resampled_on_loading_or_on_arrival_the_answer_is_one(name, resample, size):
    if name == "test_afno" and resample == "crop-pad":
        pytest.skip("AFNO has no filters")
    native, resized = make(name, resample=resample).eval(), make(name, resample=resample, img_size=size).eval()
    freqformer.load_checkpoint(resized, native.state_dict())
    x = images(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(resized(x), native(x), rtol=1e-4, atol=1e-5)


def test_an_unknown_resampling_is_named():
    with pytest.raises(FreqFormerError, match=r"'fold'.*stretch, crop-pad"):
        freqformer.create_model("test_dfformer", resample="fold")


@pytest.mark.parametrize("name", ["test_gfnet", "test_dfformer"])
@pytest.mark.parametrize(
    "change",
    [
        lambda model: [p.mul_(2) for p in model.parameters()],
        lambda model: [p.data.mul_(2) for p in model.parameters()],
        lambda model: [setattr(p, "data", 2 * p.data) for p in model.parameters()],
        lambda model: model.load_state_dict({key: 2 * value for key, value in model.state_dict().items()}),
        lambda model: model.double(),
        lambda model: model.bfloat16().float(),
    ],
    ids=["in place", "data in place", "data replaced", "loaded", "double", "rounded"],
)
def test_remembered_filters_never_go_stale(name, change):
    model = make(name).eval()
    x = images(1, 3, 48, 40)
    with torch.no_grad():
        first = model(x)
        assert torch.equal(model(x), first)
        change(model)
        x = x.to(next(model.parameters()).dtype)
        fresh = make(name).to(x.dtype).eval()
        fresh.load_state_dict(model.state_dict())
        torch.testing.assert_close(model(x), fresh(x), rtol=0, atol=0)


def test_what_is_remembered_is_not_made_again(monkeypatch):
    layer = GlobalFilter(4, (6, 6)).eval()
    calls = []
    fit = layer.fitted.fit
    layer.fitted.fit = lambda *arguments: calls.append(1) or fit(*arguments)
    with torch.no_grad():
        for size in (8, 8, 9, 8, 9, 6):
            layer(torch.ones(1, size, size, 4))
    assert len(calls) == 2
    layer(torch.ones(1, 8, 8, 4)).sum().backward()
    assert layer.complex_weight.grad is not None


def test_what_inference_mode_remembers_serves_a_gradient():
    layer = GlobalFilter(4, (6, 6)).requires_grad_(False)
    with torch.inference_mode():
        layer(torch.ones(1, 8, 8, 4))
    x = torch.ones(1, 8, 8, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("name", ["test_spectformer_h", "test_freqformer_h"])
def test_token_labels(name):
    model = make(name).eval()
    x = images(2, 3, 64, 48)
    features = model.forward_features(x)
    logits, tokens = model.forward_head(features, return_tokens=True)
    assert logits.shape == (2, 10)
    assert tokens.shape == (2, 2, 2, 10)
    torch.testing.assert_close(model(x), logits + 0.5 * tokens.flatten(1, 2).max(dim=1).values)
    unpooled = copy.deepcopy(model)
    unpooled.reset_classifier(10, "")
    assert [part.shape for part in unpooled.forward_head(features, return_tokens=True)] == [(2, 2, 2, 10)] * 2
    plain = make(name, token_label=False).eval()
    report = freqformer.load_checkpoint(plain, model.state_dict())
    assert sorted(report.left_out) == ["token_head.bias", "token_head.weight"]
    torch.testing.assert_close(plain(x), logits)
    with pytest.raises(ValueError, match="token_label"):
        plain.forward_head(features, return_tokens=True)
    # The other way round something would be missing that the answer needs.
    with pytest.raises(FreqFormerError, match="token_head"):
        freqformer.load_checkpoint(model, plain.state_dict())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("lowering", ["fft", "dft"])
def test_gradients_reach_every_parameter(name, lowering):
    model = make(name)
    with use_lowering(lowering):
        model(images(4, 3, 64, 40)).square().sum().backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


@pytest.mark.parametrize("name", PYRAMIDS)
def test_features_have_norms_of_their_own_when_asked(name):
    model = make(name, features_only=True, out_norms=True).eval()
    plain = make(name, features_only=True).eval()
    whole = make(name).eval()
    report = freqformer.load_checkpoint(model, whole.state_dict())
    assert {key.split(".")[0] for key in report.missing} == {"out_norms"}
    freqformer.load_checkpoint(plain, whole.state_dict())
    x = images(2, 3, 64, 64)
    for normed, raw in zip(model(x), plain(x), strict=True):
        expected = torch.nn.functional.layer_norm(raw.permute(0, 2, 3, 1), raw.shape[1:2], eps=1e-6)
        torch.testing.assert_close(normed, expected.permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", EVERY)
def test_an_image_of_other_channels_takes_the_colour_weights(name):
    colour, grey = make(name).eval(), make(name, in_chans=1).eval()
    report = freqformer.load_checkpoint(grey, colour.state_dict())
    assert len(report.adapted) == 1
    x = images(1, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(grey(x), colour(x.expand(1, 3, 32, 32)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["test_gfnet_h", "test_dfformer"])
@pytest.mark.parametrize("indices", [(1, 2, 3), (0, 2), (3,)])
def test_features_not_taken_have_no_norm_and_a_file_with_all_of_them_still_loads(name, indices):
    dense = make(name, features_only=True, out_norms=True).eval()
    fewer = make(name, features_only=True, out_norms=True, out_indices=indices).eval()
    norms = {key.split(".")[1] for key, _ in fewer.model.named_parameters() if key.startswith("out_norms.")}
    assert norms == {str(index) for index in indices}
    left_out = {f"out_norms.{index}" for index in range(4) if index not in indices}
    assert {part for part in fewer.model.pruned if part.startswith("out_norms.")} == left_out
    report = freqformer.load_checkpoint(fewer, dense.model.state_dict())
    assert {key.rpartition(".")[0] for key in report.unexpected if key.startswith("out_norms.")} == left_out
    x = images(1, 3, 64, 48)
    with torch.no_grad():
        every = dense(x)
        for feature, index in zip(fewer(x), indices, strict=True):
            assert torch.equal(feature, every[index])
