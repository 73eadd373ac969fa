"""Weights into a model: whatever a file's keys and shapes, they fit, or one line says what does not."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import freqformer
from freqformer import FreqFormerError

NAMES = ["test_gfnet", "test_freqformer", "test_gfnet_h", "test_spectformer_h", "test_dfformer", "test_afno"]


@functools.cache
def model_of(name):
    torch.manual_seed(0)
    return freqformer.create_model(name).eval()


def split_queries(state):
    """A state dict whose attention keeps queries apart from keys and values, as official pyramids do."""
    result = {}
    for key, value in state.items():
        if ".token_mixer.qkv." in key:
            third = len(value) // 3
            result[key.replace(".qkv.", ".q.")], result[key.replace(".qkv.", ".kv.")] = value[:third], value[third:]
        else:
            result[key] = value
    return result


def refusal(call):
    """What the call says where it refuses, or None; any other error is a failure."""
    try:
        call()
    except FreqFormerError as error:
        return str(error)
    return None


def test_split_queries_are_joined():
    model, other = model_of("test_spectformer_h"), freqformer.create_model("test_spectformer_h").eval()
    report = freqformer.load_checkpoint(other, split_queries(model.state_dict()))
    assert report.mapped["stages.2.blocks.0.token_mixer.kv.bias"] == "stages.2.blocks.0.token_mixer.qkv.bias"
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(other(x), model(x))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_any_change_of_a_file_is_harmless_or_named(name, data):
    state = split_queries(model_of(name).state_dict())
    key = data.draw(st.sampled_from(sorted(state)))
    change = data.draw(st.sampled_from(["shape", "drop", "rename", "complex", "integers", "scalar", "empty"]))
    value = state.pop(key)
    if change == "shape":
        state[key] = torch.zeros(data.draw(st.lists(st.integers(0, 9), max_size=5)))
    elif change == "rename":
        state[data.draw(st.text(max_size=20)) or "x"] = value
    elif change != "drop":
        state[key] = {
            "complex": torch.zeros(value.shape, dtype=torch.complex64),
            "integers": torch.zeros(value.shape, dtype=torch.int64),
            "scalar": torch.tensor(1.0),
            "empty": value[:0] if value.ndim else value,
        }[change]
    target = freqformer.create_model(name)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    message = refusal(lambda: freqformer.load_checkpoint(target, state))
    if message is not None:
        assert len(message.splitlines()) == 1
        # A refused file changes nothing.
        assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_bare_weights_of_any_shape_make_a_model_or_an_error(tmp_path_factory, name, data):
    state = dict(model_of(name).state_dict())
    ends = [k for k in state if k.startswith(("head", "stem", "pos_embed")) or k.endswith("complex_weight")]
    key = data.draw(st.sampled_from(sorted(ends)))
    state[key] = torch.zeros(data.draw(st.lists(st.integers(0, 40), max_size=5)))
    path = tmp_path_factory.mktemp("bare") / "bare.pth"
    torch.save(state, path)
    message = refusal(lambda: freqformer.load_model(path, arch=name))
    assert message is None or len(message.splitlines()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_official_names_of_nothing_are_not_ours(name):
    with pytest.raises(FreqFormerError, match="missing"):
        freqformer.load_checkpoint(freqformer.create_model(name), {"patch_embed.proj.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("key", "value"), [("stages.0.blocks.2.token_mixer.kv.bias", torch.zeros(())), ("pos_embed", torch.zeros(0, 1, 1))]
)
def test_tensors_that_an_official_layout_cannot_have_are_named(key, value):
    model = freqformer.create_model("test_freqformer")
    state = {**model.state_dict(), key: value}
    state["stages.0.blocks.2.token_mixer.q.bias"] = torch.zeros(32)
    with pytest.raises(FreqFormerError, match="does not fit"):
        freqformer.load_checkpoint(model, state)
