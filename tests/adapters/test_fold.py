"""Folding changes outputs by no more than rounding, leaves nothing to train, and costs no more than before."""

import pytest
import torch
from torch import nn

from freqformer import adapters
from freqformer.errors import FreqFormerError

EPS = torch.finfo(torch.float64).eps
FOLDABLE = ("filter2d", "filter2d_real", "filter1d", "ssf", "rlrr", "bias", "linear", "lora")
BACKBONES = {
    "vit": ("vit_base_patch16_224", {}),
    "norm before": ("vit_base_patch16_clip_224", {}),
    "registers": ("vit_base_patch16_224", {"reg_tokens": 2, "no_embed_class": True, "global_pool": "avg"}),
    "eva02": ("eva02_base_patch14_224", {"img_size": 56}),
    "beit": ("beit_base_patch16_224", {}),
    "gfnet": ("test_gfnet", {}),
    "cait": ("cait_xxs24_224", {}),
}


def folded_differs_by(model, handle, x):
    """The largest change of an output by folding, in units of the largest output's rounding."""
    with torch.no_grad():
        y = model(x)
        handle.fold()
        return float((model(x) - y).abs().max()) / (float(y.abs().max()) * EPS)


@pytest.mark.parametrize("case", BACKBONES)
def test_outputs_stay(small, images, move, case):
    name, options = BACKBONES[case]
    for method in FOLDABLE:
        model = small(name, **options)
        handle = move(adapters.attach(model, method), by=0.2)
        assert folded_differs_by(model, handle, images(model)) <= 1000, method
        gone = method not in ("filter2d", "filter2d_real", "filter1d", "ssf")
        assert (adapters.handles(model) == []) == gone
        assert gone or not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("method", ["filter2d", "filter2d_real", "filter1d"])
def test_a_folded_filter_is_one_filter_and_a_bias(small, images, move, method):
    model = small(dynamic_img_size=True)
    handle = move(adapters.attach(model, method), by=0.2)
    x = {size: images(model, size) for size in ((64, 64), (64, 96))}
    with torch.no_grad():
        y = {size: model(value) for size, value in x.items()}
        handle.fold()
        for size, value in x.items():
            # On another grid the filter is stretched: of 1 + sK as of K, which bicubic weights that add to 1 allow.
            assert torch.allclose(model(value), y[size], rtol=0, atol=1e-13 * float(y[size].abs().max()) + 1e-13)
    place = handle.places()[0]
    assert {name for name, _ in place.named_buffers()} == {"weight", "shift"}
    assert not list(place.parameters())


def test_ssf_folds_into_the_embeddings_where_that_is_exact(small, images, move):
    def first(name, **options):
        model = small(name, **options)
        handle = move(adapters.attach(model, "ssf"), by=0.2)
        assert folded_differs_by(model, handle, images(model)) <= 1000
        return type(handle.places()[0])

    assert first("vit_base_patch16_224") is nn.Identity
    assert first("vit_base_patch16_clip_224") is nn.Identity
    # CaiT's class token comes in after the blocks: it is not theirs to scale.
    assert first("cait_xxs24_224") is not nn.Identity
    assert first("vit_base_patch16_224", dtype=torch.float64, reg_tokens=2) is nn.Identity


@pytest.mark.parametrize("other", ["filter2d", "vpt_deep", "vpt_shallow"])
@pytest.mark.parametrize("order", [0, 1])
def test_ssf_beside_what_acts_before_it_stays(small, images, move, other, order):
    model = small()
    for name in (("ssf", other), (other, "ssf"))[order]:
        move(adapters.attach(model, name), by=0.2)
    ssf = next(handle for handle in adapters.handles(model) if handle.name == "ssf")
    assert folded_differs_by(model, ssf, images(model)) <= 1000


def test_half_precision_folds_within_its_rounding(small, images, move):
    for dtype in (torch.bfloat16, torch.float16):
        for method in ("filter2d", "ssf", "lora", "rlrr"):
            model = small(dtype=dtype)
            handle = move(adapters.attach(model, method))
            x = images(model)
            with torch.no_grad():
                y = model(x).float()
                handle.fold()
                assert float((model(x).float() - y).abs().max()) <= 16 * torch.finfo(dtype).eps * float(y.abs().max())


def test_a_merged_network_is_the_bare_one_again(small, images, move):
    model = small()
    bare = small()
    keys = list(model.state_dict())
    move(adapters.attach(model, "lora"))
    move(adapters.attach(model, "bias"))
    move(adapters.attach(model, "linear"))
    x = images(model)
    with torch.no_grad():
        y = model(x)
        assert adapters.fold_all(model) == []
        assert list(model.state_dict()) == keys
        bare.load_state_dict(model.state_dict())
        assert torch.allclose(bare(x), y, rtol=0, atol=1000 * EPS * float(y.abs().max()))


def test_what_cannot_be_folded_stays_and_is_named(small, images, move):
    model = small()
    for name in ("filter2d", "vpt_deep", "adapter", "lora"):
        move(adapters.attach(model, name))
    x = images(model)
    with torch.no_grad():
        y = model(x)
        assert sorted(adapters.fold_all(model)) == ["adapter", "vpt_deep"]
        assert torch.allclose(model(x), y, rtol=0, atol=1000 * EPS * float(y.abs().max()))
    for handle in adapters.handles(model):
        if handle.name == "adapter":
            with pytest.raises(FreqFormerError, match="cannot be folded"):
                handle.fold()
