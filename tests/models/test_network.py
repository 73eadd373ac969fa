import copy
import functools
import io
import pickle

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import freqformer
from freqformer import FreqFormerError
from freqformer.layers import Attention, GlobalFilter, Widened
from freqformer.ops import use_lowering

TINY = ["test_gfnet", "test_freqformer"]


def make(name="test_freqformer", **arguments):
    torch.manual_seed(0)
    return freqformer.create_model(name, **arguments)


# For tests that change nothing of it.
shared_model = functools.cache(make)


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", TINY)
def test_the_parts_of_forward_have_their_shapes(name):
    model = make(name).eval()
    x = images(2, 3, 32, 32)
    grid = model.forward_features(x)
    pooled = model.forward_head(grid, pre_logits=True)
    assert grid.shape == (2, 4, 4, 32)
    assert pooled.shape == (2, model.num_features) == (2, 32)
    assert model.forward_head(grid).shape == (2, 10)
    torch.testing.assert_close(pooled, grid.mean(dim=(1, 2)))
    torch.testing.assert_close(model(x), model.forward_head(grid))
    torch.testing.assert_close(model(x), model.get_classifier()(pooled))


def test_without_classes_forward_returns_the_pooled_features():
    model, headless = make().eval(), make(num_classes=0).eval()
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
    headless.load_state_dict(state)
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(headless(x), model.forward_head(model.forward_features(x), pre_logits=True))


def test_reset_classifier():
    model = make().double().eval()
    x = images(2, 3, 32, 32).double()
    features = model.forward_features(x)
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(x).shape == (2, 7)
    assert model(x).dtype == torch.float64
    assert torch.equal(model.forward_features(x), features)
    model.reset_classifier(0, global_pool="avg")
    torch.testing.assert_close(model(x), features.mean(dim=(1, 2)))
    with pytest.raises(ValueError, match="global_pool"):
        model.reset_classifier(3, global_pool="max")


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(TINY),
    st.integers(1, 2),
    st.integers(1, 45),
    st.integers(1, 45),
    st.booleans(),
)
def test_any_image_size(name, batch, height, width, training):
    model = shared_model(name).train(training)
    grid = model.forward_features(images(batch, 3, height, width))
    assert grid.shape == (batch, -(-height // 8), -(-width // 8), 32)
    logits = model(images(batch, 3, height, width))
    assert logits.shape == (batch, 10)
    assert logits.isfinite().all()


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(TINY), st.integers(1, 40), st.integers(1, 40))
def test_images_are_padded_with_zeros_at_the_bottom_and_the_right(name, height, width):
    model = shared_model(name).eval()
    x = images(1, 3, height, width)
    padded = torch.zeros(1, 3, -(-height // 8) * 8, -(-width // 8) * 8)
    padded[..., :height, :width] = x
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(padded))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("img_size", [32, (24, 40), (20, 33), 7])
def test_any_native_size(name, img_size):
    model = make(name, img_size=img_size).eval()
    height, width = model.img_size
    assert model(images(2, 3, height, width)).shape == (2, 10)
    assert model(images(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_any_number_of_image_channels(in_chans):
    assert make(in_chans=in_chans)(images(2, in_chans, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [32, 27])
def test_eval_is_deterministic_and_samples_do_not_mix(name, size):
    model = make(name, drop_rate=0.5, drop_path_rate=0.5).eval()
    x = images(3, 3, size, size)
    with torch.no_grad():
        y = model(x)
        assert torch.equal(model(x), y)
        for i in range(3):
            torch.testing.assert_close(model(x[i : i + 1]), y[i : i + 1])


def test_the_same_seed_makes_the_same_model():
    a, b = make().state_dict(), make().state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("rate", ["drop_rate", "drop_path_rate"])
def test_dropping_acts_in_training_only(rate):
    plain, dropping = make().eval(), make(**{rate: 0.9}).eval()
    dropping.load_state_dict(plain.state_dict())
    x = images(4, 3, 32, 32)
    assert torch.equal(dropping(x), plain(x))
    assert torch.equal(plain.train()(x), plain.eval()(x))
    dropping.train()
    assert len({dropping(x).sum().item() for _ in range(8)}) > 1


def test_heads_are_a_keyword_that_changes_the_function_but_no_parameter():
    two, four = make(num_heads=2).eval(), make(num_heads=4).eval()
    four.load_state_dict(two.state_dict())
    x = images(1, 3, 32, 32)
    assert not torch.allclose(two(x), four(x))


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_spectral_depth_is_a_keyword(depth):
    model = make(spectral_depth=depth)
    assert sum(key.endswith("complex_weight") for key in model.state_dict()) == depth
    assert model(images(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"num_heads": 3}, "num_heads"),
        ({"num_heads": 64}, "num_heads"),
        ({"num_heads": 0}, "num_heads"),
        ({"num_heads": -2}, "num_heads"),
        ({"spectral_depth": 4}, "spectral_depth"),
        ({"spectral_depth": -1}, "spectral_depth"),
        ({"global_pool": "token"}, "global_pool"),
    ],
)
def test_wrong_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        timm.create_model("test_freqformer", **arguments)
    with pytest.raises(FreqFormerError, match=word):
        freqformer.create_model("test_freqformer", **arguments)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [32, 43])
def test_autocast(name, dtype, size):
    model = make(name)
    x = images(2, 3, size, size)
    exact = model(x)
    with torch.autocast("cpu", dtype):
        y = model(x)
        loss = y.float().square().mean()
    loss.backward()
    assert y.dtype == dtype
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters())
    # bfloat16 has 8 bits: a few per cent of the logits' spread.
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05 * exact.std().item() + 1e-3)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("lowering", ["fft", "dft"])
def test_gradients_reach_every_parameter(name, size, lowering):
    model = make(name)
    with use_lowering(lowering):
        model(images(2, 3, *size)).square().sum().backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


@pytest.mark.parametrize("name", TINY)
def test_copies_and_pickles_are_equal_and_separate(name):
    model = make(name).eval()
    x = images(1, 3, 32, 32)
    y = model(x)
    whole = io.BytesIO()
    torch.save(model, whole)
    whole.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(whole, weights_only=False)]
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    for other in copies:
        assert torch.equal(other(x), y)
        assert other.pretrained_cfg == model.pretrained_cfg


def test_weight_decay_spares_the_position_embedding():
    model = make()
    assert set(model.no_weight_decay()) <= dict(model.named_parameters()).keys()
    assert "pos_embed" in model.no_weight_decay()


def test_pretrained_cfg_names_the_models_ends():
    model = make()
    modules = dict(model.named_modules())
    assert modules[model.pretrained_cfg["classifier"]] is model.get_classifier()
    assert modules[model.pretrained_cfg["first_conv"]].in_channels == 3
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("lowering", ["fft", "dft"])
@pytest.mark.parametrize("size", [(32, 32), (24, 37)])
def test_compiled_in_one_graph_it_is_equal(name, lowering, size):
    model = make(name)
    x = images(2, 3, *size)
    results = []
    torch._dynamo.reset()
    with use_lowering(lowering):
        for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
            model.zero_grad()
            y = run(x)
            y.square().sum().backward()
            results.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


def test_an_isotropic_network_takes_its_mixers_block_by_block():
    mixers = ["attention", "dynamic", "global"]
    model = freqformer.create_model("test_freqformer", mixers=mixers)
    kinds = [type(block.token_mixer) for block in model.stages[0].blocks]
    assert kinds == [Attention, Widened, GlobalFilter]
    assert [block.mixer_residual for block in model.stages[0].blocks] == [True, True, False]
    model(images(2, 3, 40, 24)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("mixers", "what"), [(["global"], "each of the 3 blocks"), (["global"] * 2 + ["x"], "'x'")])
def test_mixers_that_do_not_fit_are_refused(mixers, what):
    with pytest.raises(FreqFormerError, match=what):
        freqformer.create_model("test_freqformer", mixers=mixers)
