"""Methods in any number and order: they act together, are taken away in any order, folded, saved and loaded."""

from itertools import pairwise

import pytest
import timm
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from freqformer import adapters
from freqformer.adapters.storage import save_all
from freqformer.errors import FreqFormerError

METHODS = {
    "filter2d": {},
    "filter2d_real": {},
    "filter1d": {},
    "ssf": {},
    "linear": {},
    "bias": {},
    "adapter": {},
    "rlrr": {},
    "lora": {"r": 2},
    "vpt_shallow": {"num_tokens": 2},
    "vpt_deep": {"num_tokens": 2},
}
EXCLUSIVE = ({"rlrr", "lora"}, {"vpt_shallow", "vpt_deep"})
SUBSETS = st.lists(st.sampled_from(sorted(METHODS)), unique=True, min_size=2, max_size=5).filter(
    lambda names: not any(pair <= set(names) for pair in EXCLUSIVE)
)
FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def outputs(model, x):
    with torch.no_grad():
        return model(x)


def close(a, b):
    return torch.allclose(a, b, rtol=0, atol=1e-11 * max(1.0, float(b.abs().max())))


@settings(max_examples=8, deadline=None, suppress_health_check=FIXTURES, derandomize=True)
@given(names=SUBSETS, data=st.data())
@example(names=["filter2d", "filter2d_real", "filter1d", "ssf"], data=None)
@example(names=["bias", "lora", "filter2d"], data=None)
@example(names=["rlrr", "adapter", "bias", "linear"], data=None)
def test_any_subset_in_any_order(small, images, move, names, data):
    model = small(global_pool="avg")
    x, keys = images(model), list(model.state_dict())
    flags = [parameter.requires_grad for parameter in model.parameters()]
    bare = outputs(model, x)
    before = bare
    for step, name in enumerate(names):
        move(adapters.attach(model, name, **METHODS[name]), seed=step)
        after = outputs(model, x)
        assert float((after - before).abs().max()) > 1e-9, (names, name)
        before = after
    # Every one learns beside the others, and nothing else does.
    model(x).square().sum().backward()
    trained = set()
    for handle in adapters.handles(model):
        for key, parameter in handle.named().items():
            assert parameter.requires_grad
            assert parameter.grad is not None, (names, handle.name, key)
            trained.add(id(parameter))
    assert sum(len(handle.named()) for handle in adapters.handles(model)) == len(trained), names
    assert {id(p) for p in model.parameters() if p.requires_grad} == trained
    # Any order of leaving.
    leaving = list(reversed(names)) if data is None else data.draw(st.permutations(names))
    for name in leaving:
        next(handle for handle in adapters.handles(model) if handle.name == name).detach()
    assert list(model.state_dict()) == keys
    assert torch.equal(outputs(model, x), bare), (names, leaving)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


@settings(max_examples=8, deadline=None, suppress_health_check=FIXTURES, derandomize=True)
@given(names=SUBSETS, data=st.data())
@example(names=["rlrr", "bias", "filter2d"], data=None)
@example(names=["bias", "lora", "linear"], data=None)
def test_any_subset_folds_in_any_order(small, images, move, names, data):
    model = small(global_pool="avg")
    x = images(model)
    for step, name in enumerate(names):
        move(adapters.attach(model, name, **METHODS[name]), seed=step)
    y = outputs(model, x)
    if data is None:
        adapters.fold_all(model)
        assert close(outputs(model, x), y), names
        return
    for name in data.draw(st.permutations(names)):
        handle = next(handle for handle in adapters.handles(model) if handle.name == name)
        if handle.foldable:
            handle.fold()
            assert close(outputs(model, x), y), (names, name)


@settings(max_examples=5, deadline=None, suppress_health_check=FIXTURES, derandomize=True)
@given(names=SUBSETS, data=st.data())
def test_any_subset_is_loaded_in_any_order(small, images, move, tmp_path_factory, names, data):
    folder = tmp_path_factory.mktemp("adapters")
    model = small(global_pool="avg")
    for step, name in enumerate(names):
        move(adapters.attach(model, name, **METHODS[name]), seed=step)
    x = images(model)
    save_all(model, folder)
    fresh = small(global_pool="avg")
    filters = [name for name in names if name.startswith(("filter", "ssf"))]
    order = data.draw(st.permutations(names))
    # What acts at the same places acts in the order of attachment.
    order = [filters.pop(0) if name.startswith(("filter", "ssf")) else name for name in order]
    for name in order:
        adapters.load(fresh, folder / name)
    assert close(outputs(fresh, x), outputs(model, x)), (names, order)


@pytest.mark.parametrize("pair", [("rlrr", "lora"), ("lora", "rlrr"), ("lora", "loha"), ("vpt_shallow", "vpt_deep")])
def test_two_in_one_place_are_refused(small, images, pair):
    model = small()
    adapters.attach(model, pair[0])
    x = images(model)
    y = outputs(model, x)
    with pytest.raises(FreqFormerError, match=r"detach (it|them) first"):
        adapters.attach(model, pair[1])
    assert torch.equal(outputs(model, x), y)
    assert [handle.name for handle in adapters.handles(model)] == [pair[0]]


def test_prompts_and_a_filter_of_patches_and_prompts(small, images, move):
    model = small()
    move(adapters.attach(model, "vpt_deep", num_tokens=4))
    handle = move(adapters.attach(model, "filter1d", tokens="patch+prompt"))
    seen = []
    for place in handle.places():
        place.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[2]))
    model(images(model))
    # After the last block the prompts are filtered, then taken away.
    assert seen == [20] * 3
    assert all(parameter.grad is None for parameter in handle.parameters())


def test_features_of_a_prompted_network_are_those_of_its_patches(small, images, move):
    model = small(reg_tokens=1)
    x = images(model)
    with torch.no_grad():
        shape = model.forward_features(x).shape
        maps = [y.shape for y in model.forward_intermediates(x, intermediates_only=True)]
        move(adapters.attach(model, "filter2d"))
        assert [y.shape for y in model.forward_intermediates(x, intermediates_only=True)] == maps
        move(adapters.attach(model, "vpt_deep", num_tokens=3))
        assert model.forward_features(x).shape == shape
        assert [y.shape for y in model.forward_intermediates(x, intermediates_only=True)] == maps


def test_shallow_prompts_leave_no_features_between_the_blocks(small, images):
    model = small()
    x = images(model)
    maps = [y.shape for y in model.forward_intermediates(x, intermediates_only=True)]
    handle = adapters.attach(model, "vpt_shallow")
    with pytest.raises(FreqFormerError, match="take vpt_deep"):
        model.forward_intermediates(x)
    assert model.forward_features(x).shape == (2, 17, 48)
    handle.detach()
    assert [y.shape for y in model.forward_intermediates(x, intermediates_only=True)] == maps


def test_features_of_timms_wrapper_are_adapted(images, move):
    options = {"embed_dim": 48, "depth": 2, "num_heads": 4, "img_size": 64, "out_indices": (0, 1)}
    model = timm.create_model("vit_base_patch16_224", features_only=True, **options).eval()
    x = images(model)
    with torch.no_grad():
        before = model(x)
        handle = move(adapters.attach(model, "filter2d"))
        after = model(x)
        assert [y.shape for y in after] == [y.shape for y in before]
        assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
        handle.detach()
        assert all(torch.equal(a, b) for a, b in zip(model(x), before, strict=True))


def test_a_classifier_made_anew_stays_when_its_method_leaves(small, images):
    model = small()
    handle = adapters.attach(model, "linear")
    model.reset_classifier(3)
    assert len(handle.named()) == 2
    handle.detach()
    assert model(images(model)).shape == (2, 3)


def test_full_fine_tuning_beside_frequency_modules(small, images, move):
    model = small()
    move(adapters.attach(model, "full"))
    move(adapters.attach(model, "filter2d"))
    move(adapters.attach(model, "linear"))
    model(images(model)).sum().backward()
    names = [handle.named() for handle in adapters.handles(model)]
    for first, second in pairwise(names):
        assert not {id(p) for p in first.values()} & {id(p) for p in second.values()}
    assert all(p.requires_grad for p in model.parameters())
    for name in ("lora", "bias", "rlrr"):
        with pytest.raises(FreqFormerError, match="full fine-tuning"):
            adapters.attach(model, name)
    with pytest.raises(FreqFormerError, match="make the model again"):
        adapters.handles(model)[0].detach()
