import argparse
import contextlib
import io
import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

import freqformer
from freqformer import FreqFormerError, load_checkpoint
from freqformer.checkpoints import read_description, read_weights, save_model, write_whole
from freqformer.models.isotropic import isotropic

TINY = ["test_gfnet", "test_freqformer"]


def make(name="test_freqformer", seed=0, **arguments):
    torch.manual_seed(seed)
    return freqformer.create_model(name, **arguments).eval()


def official(model):
    """The model's weights under the keys of the official codes."""
    state = {}
    for key, value in model.state_dict().items():
        key = key.replace("stem.", "patch_embed.").replace("stages.0.blocks.", "blocks.")
        key = key.replace("token_mixer.complex_weight", "filter.complex_weight").replace("token_mixer.", "attn.")
        state[key] = value.flatten(1, 2) if key == "pos_embed" else value
    return state


def logits(model, height=32, width=32):
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(x)


def refuse(call, *words):
    """The call's error is for a person: of our kind, one line, and it says these words."""
    with pytest.raises(FreqFormerError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert str(word) in message
    return message


@pytest.mark.parametrize("name", TINY)
def test_official_weights_are_mapped(name):
    source, target = make(name), make(name, seed=1)
    report = load_checkpoint(target, official(source))
    assert torch.equal(logits(target), logits(source))
    assert report.resampled == report.left_out == []
    assert report.mapped["patch_embed.proj.weight"] == "stem.proj.weight"
    assert report.mapped["blocks.0.filter.complex_weight"] == "stages.0.blocks.0.token_mixer.complex_weight"
    assert "head.weight" not in report.mapped
    assert f"{len(report.mapped)} keys mapped" in str(report)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors"])
def test_files_of_every_kind(tmp_path, name, suffix):
    source, target = make(name), make(name, seed=1)
    path = tmp_path / f"weights{suffix}"
    state = official(source)
    save_file({k: v.contiguous() for k, v in state.items()}, path) if suffix == ".safetensors" else torch.save(
        state, path
    )
    for where in (path, str(path)):
        load_checkpoint(target, where)
        assert torch.equal(logits(target), logits(source))
    assert read_weights(path).keys() == state.keys()


def test_our_own_weights_need_no_report():
    source, target = make(), make(seed=1)
    report = load_checkpoint(target, source.state_dict())
    assert [*report.mapped, *report.resampled, *report.left_out] == []
    assert str(report)
    assert torch.equal(logits(target), logits(source))


WRAPPERS = {
    "model": lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state},
    "model_ema": lambda state: {"model": {k: torch.zeros_like(v) for k, v in state.items()}, "model_ema": state},
    "namespace": lambda state: {"model": state, "args": argparse.Namespace(lr=1e-3, data_path="x", clip_grad=None)},
    "module.": lambda state: {f"module.{k}": v for k, v in state.items()},
    "_orig_mod.": lambda state: {"model": {f"_orig_mod.module.{k}": v for k, v in state.items()}},
    "lightning": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}, "loops": {}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("layout", [official, lambda model: model.state_dict()], ids=["official", "ours"])
def test_wrappers_of_training_scripts_are_taken_off(tmp_path, wrapper, layout):
    source = make()
    wrapped = WRAPPERS[wrapper](layout(source))
    torch.save(wrapped, tmp_path / "weights.pth")
    for where in (wrapped, tmp_path / "weights.pth"):
        target = make(seed=1)
        load_checkpoint(target, where)
        assert torch.equal(logits(target), logits(source))


@pytest.mark.parametrize("layout", [official, lambda model: model.state_dict()], ids=["official", "ours"])
def test_a_head_for_other_classes_is_left_out(layout):
    source, target = make(num_classes=7), make(seed=1)
    head = target.head.weight.clone()
    report = load_checkpoint(target, layout(source))
    assert report.left_out == ["head.bias", "head.weight"]
    assert "head.weight" in str(report)
    assert torch.equal(target.head.weight, head)
    features = [m.forward_head(m.forward_features(torch.ones(1, 3, 32, 32)), pre_logits=True) for m in (source, target)]
    assert torch.equal(*features)


def test_a_headless_file_leaves_the_head_as_it_is():
    source, target = make(num_classes=0), make(seed=1)
    head = target.head.weight.clone()
    report = load_checkpoint(target, source.state_dict())
    assert sorted(report.missing) == ["head.bias", "head.weight"]
    assert torch.equal(target.head.weight, head)
    target.reset_classifier(0)
    assert torch.equal(logits(target), logits(source))


def test_a_headless_model_leaves_out_the_files_head():
    source, target = make(), make(seed=1, num_classes=0)
    report = load_checkpoint(target, source.state_dict())
    assert sorted(report.left_out) == ["head.bias", "head.weight"]
    source.reset_classifier(0)
    assert torch.equal(logits(target), logits(source))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(48, 48), (16, 56), (40, 24), (8, 8), (33, 17)])
@pytest.mark.parametrize("layout", [official, lambda model: model.state_dict()], ids=["official", "ours"])
def test_another_resolution_is_resampled_as_forward_does_it(name, size, layout):
    source, target = make(name), make(name, seed=1, img_size=size)
    report = load_checkpoint(target, layout(source))
    filters = [key for key in source.state_dict() if key.endswith("complex_weight")]
    assert report.resampled == sorted(["pos_embed", *filters])
    assert "resampled" in str(report)
    torch.testing.assert_close(logits(target, *size), logits(source, *size))


def test_a_non_square_checkpoint_of_ours():
    source, target = make(img_size=(24, 40)), make(seed=1)
    assert "pos_embed" in load_checkpoint(target, source.state_dict()).resampled
    torch.testing.assert_close(logits(target), logits(source))


def test_weights_take_the_models_dtype():
    source, target = make(), make(seed=1).double()
    load_checkpoint(target, {key: value.half() for key, value in source.state_dict().items()})
    assert {p.dtype for p in target.parameters()} == {torch.float64}


@pytest.mark.parametrize("layout", [official, lambda model: model.state_dict()], ids=["official", "ours"])
def test_missing_unexpected_and_misshapen_keys_are_named(layout):
    source, target = make(), make(seed=1)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = dict(layout(source))
    del state["norm.bias"]
    refuse(lambda: load_checkpoint(target, state), "missing", "norm.bias", "test_freqformer")
    state = {**layout(source), "surprise.weight": torch.zeros(1)}
    refuse(lambda: load_checkpoint(target, state), "unexpected", "surprise.weight")
    state = {**layout(source), "norm.weight": torch.zeros(5)}
    refuse(lambda: load_checkpoint(target, state), "shape", "norm.weight", "(5,)", "(32,)")
    # A refused file changes nothing.
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize("other", ["test_gfnet", "freqformer_n"])
def test_another_models_weights_are_refused(tmp_path, other):
    path = tmp_path / "other.pth"
    torch.save(official(make(other)), path)
    message = refuse(lambda: load_checkpoint(make(), path), path)
    assert len(message) < 1500


def test_a_model_of_ones_own_takes_weights_and_another_packages_does_not():
    source = make("test_gfnet")
    own = isotropic(img_size=32, patch_size=8, embed_dim=32, depth=3, spectral_depth=3, num_classes=10).eval()
    load_checkpoint(own, source.state_dict())
    assert torch.equal(logits(own), logits(source))
    refuse(lambda: load_checkpoint(own, {"norm.weight": torch.zeros(3)}), "the network", "missing")
    refuse(lambda: load_checkpoint(torch.nn.Linear(2, 2), source.state_dict()), "Linear")


def test_a_pyramids_file_says_what_it_is():
    state = {"patch_embed1.proj.weight": torch.zeros(8, 8, 3, 3)}
    refuse(lambda: load_checkpoint(make(), state), "holds a SpectFormer pyramid", "test_freqformer")


def test_a_vits_weights_are_refused():
    """A DeiT has a class token: its position embedding is no square grid."""
    state = {**official(make()), "cls_token": torch.zeros(1, 1, 32), "pos_embed": torch.zeros(1, 17, 32)}
    refuse(lambda: load_checkpoint(make(), state), "17")


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, [1, 2], {"model": {}}, "text", None, {"model": [torch.ones(1)]}], ids=repr
)
def test_a_file_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "empty.pth")
    refuse(lambda: load_checkpoint(make(), tmp_path / "empty.pth"), "no weights")


def test_a_missing_file_is_named(tmp_path):
    refuse(lambda: load_checkpoint(make(), tmp_path / "none.pth"), "none.pth")
    refuse(lambda: load_checkpoint(make(), tmp_path), tmp_path, "model.safetensors")


def damaged(path, kind):
    if kind == "truncated":
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind == "header only":
        path.write_bytes(path.read_bytes()[:5])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<!DOCTYPE html>\n<html>404: Not Found</html>\n")
    elif kind == "zeros":
        path.write_bytes(bytes(4096))
    elif kind == "5 GB header":
        path.write_bytes((5 * 10**9).to_bytes(8, "little") + b'{"a":')
    elif kind == "zip":
        path.unlink()
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("data.txt", "hello")


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("kind", ["truncated", "header only", "empty", "text", "zeros", "5 GB header", "zip"])
def test_damaged_files_are_named(tmp_path, suffix, kind):
    path = tmp_path / f"weights{suffix}"
    state = make().state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    damaged(path, kind)
    refuse(lambda: load_checkpoint(make(), path), path)
    refuse(lambda: read_description(path), path)
    refuse(lambda: freqformer.load_model(path, arch="test_freqformer"), path)


def test_a_file_in_the_old_torch_format_is_read(tmp_path):
    source, target = make(), make(seed=1)
    torch.save(official(source), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    load_checkpoint(target, tmp_path / "old.pth")
    assert torch.equal(logits(target), logits(source))
    content = (tmp_path / "old.pth").read_bytes()
    (tmp_path / "old.pth").write_bytes(content[: len(content) // 2])
    refuse(lambda: load_checkpoint(target, tmp_path / "old.pth"), "old.pth")


# torch.load on a bare pickle of another protocol than its own.
OTHER_PROTOCOL = pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")


@OTHER_PROTOCOL
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=40), st.binary(max_size=40).map(lambda b: b"\x80\x02" + b)), st.booleans())
@example(b"U", False)
@example(b"j", False)
@example(b"\x80\x02.", False)
@example(b"\x02\x00\x00\x00\x00\x00\x00\x00[]", True)
def test_no_bytes_raise_anything_else(tmp_path, content, safe):
    path = tmp_path / f"noise.{'safetensors' if safe else 'pth'}"
    path.write_bytes(content)
    refuse(lambda: read_weights(path), path)


def weight_file(form):
    file = io.BytesIO()
    state = {"a": torch.ones(2, 3), "b": torch.zeros(4)}
    if form == "safetensors":
        return save(state)
    torch.save(state, file, _use_new_zipfile_serialization=form == "torch")
    return file.getvalue()


@OTHER_PROTOCOL
@pytest.mark.parametrize("form", ["torch", "old torch", "safetensors"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_byte_is_harmless_or_named(tmp_path, form, data):
    path = tmp_path / f"flipped.{'safetensors' if form == 'safetensors' else 'pth'}"
    content = bytearray(weight_file(form))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(FreqFormerError):
        assert all(isinstance(value, torch.Tensor) for value in read_weights(path).values())


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


class MaliciousSystem(Malicious):
    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@OTHER_PROTOCOL
@pytest.mark.parametrize("kind", [Malicious, MaliciousSystem])
@pytest.mark.parametrize("writer", ["torch", "old torch", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
def test_code_in_a_file_is_never_run(tmp_path, kind, writer, suffix):
    marker, path = tmp_path / "marker", tmp_path / f"evil{suffix}"
    content = {"model": make().state_dict(), "extra": kind(str(marker))}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    for read in (
        lambda: load_checkpoint(make(), path),
        lambda: read_weights(path),
        lambda: read_description(path),
        lambda: freqformer.load_model(path, arch="test_freqformer"),
        lambda: freqformer.create_model("test_freqformer", checkpoint=path),
    ):
        message = refuse(read, path)
        if suffix != ".safetensors" and writer != "pickle":
            assert "code" in message
    assert not marker.exists()
    # The file would have done it.
    if writer == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert marker.exists()


def description(model, **changes):
    return {
        "architecture": model.pretrained_cfg["architecture"],
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": {"img_size": list(model.img_size)},
        "label_names": [f"class {i}" for i in range(model.num_classes)],
        "pretrained_cfg": {
            "input_size": [3, *model.img_size],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "crop_pct": 0.9,
            "interpolation": "bilinear",
            "num_classes": model.num_classes,
            "first_conv": "stem.proj",
            "classifier": "head",
        },
        **changes,
    }


@pytest.mark.parametrize("arguments", [{}, {"num_classes": 3, "img_size": (24, 40)}, {"num_classes": 0}])
def test_what_is_saved_is_read_back(tmp_path, arguments):
    source = make(**arguments)
    said = description(source)
    folder = tmp_path / "a" / "run"
    save_model(folder, source.state_dict(), said)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert read_description(folder) == said
    assert read_description(folder / "model.safetensors") == said
    weights = read_weights(folder)
    assert all(torch.equal(weights[key], value) for key, value in source.state_dict().items())
    # The weight file says it alone, too.
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((folder / "model.safetensors").read_bytes())
    assert read_description(alone) == said


def test_weights_that_are_views_are_saved(tmp_path):
    model = make()
    state = {key: value.transpose(0, -1).contiguous().transpose(0, -1) for key, value in model.state_dict().items()}
    save_model(tmp_path, state, description(model))
    target = make(seed=1)
    load_checkpoint(target, tmp_path)
    assert torch.equal(logits(target), logits(model))


@pytest.mark.parametrize("name", [*TINY, "freqformer_n"])
@pytest.mark.parametrize("arguments", [{"num_classes": 10}, {"num_classes": 3, "img_size": (24, 40)}])
def test_timm_loads_what_is_saved(tmp_path, name, arguments):
    source = make(name, **arguments)
    save_model(tmp_path, source.state_dict(), description(source))
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert model.num_classes == source.num_classes
    assert model.img_size == source.img_size
    assert torch.equal(logits(model), logits(source))
    assert timm.data.resolve_model_data_config(model)["interpolation"] == "bilinear"


def test_bare_weights_describe_nothing(tmp_path):
    torch.save(make().state_dict(), tmp_path / "a.pth")
    save_file(make().state_dict(), tmp_path / "b.safetensors")
    assert read_description(tmp_path / "a.pth") is None
    assert read_description(tmp_path / "b.safetensors") is None


def test_a_broken_config_is_named(tmp_path):
    save_file(make().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": ')
    refuse(lambda: read_description(tmp_path), "config.json", "JSON")


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), RuntimeError("x"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    target = tmp_path / "file"
    target.write_text("old")

    def write(path):
        path.write_text("half of the n")
        raise failure

    expected = FreqFormerError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected) as caught:
        write_whole(target, write)
    if expected is FreqFormerError:
        assert re.search("file.*No space left", str(caught.value))
    assert os.listdir(tmp_path) == ["file"]
    assert target.read_text() == "old"


def test_a_write_replaces_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")
    write_whole(tmp_path / "file", lambda path: path.write_text("new"))
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "new"


def test_a_failed_save_leaves_the_old_run(tmp_path, monkeypatch):
    old, new = make(), make(seed=1)
    save_model(tmp_path, old.state_dict(), description(old))

    def full_disk(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("freqformer.checkpoints.save_file", full_disk)
    refuse(lambda: save_model(tmp_path, new.state_dict(), description(new)), "No space left", "model.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert torch.equal(logits(freqformer.load_model(tmp_path)), logits(old))
