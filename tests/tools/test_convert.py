"""`freqformer convert`: official files in, safetensors out."""

import argparse

import pytest
import timm
import torch
from safetensors import safe_open

import freqformer
from freqformer.tools import convert


def official_gfnet(path, classes=10):
    """A file as GFNet's training script writes it: its own names, and its parsed arguments beside them."""
    torch.manual_seed(0)
    model = freqformer.create_model("test_gfnet", num_classes=classes).eval()
    state = {}
    for key, value in model.state_dict().items():
        key = key.replace("stem.", "patch_embed.").replace("stages.0.blocks.", "blocks.")
        key = key.replace("token_mixer.", "filter.")
        state[key] = value.flatten(1, 2) if key == "pos_embed" else value
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(arch="gfnet", lr=1e-3)}, path)
    return model


def same_logits(a, b):
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return torch.equal(a(x), b(x))


def test_a_named_model_is_checked_and_described(command, tmp_path):
    model = official_gfnet(tmp_path / "gfnet.pth", classes=7)
    answer = command("convert", tmp_path / "gfnet.pth", tmp_path / "gfnet.safetensors", "--arch", "test_gfnet")
    assert answer.code == 0, answer.err
    assert "test_gfnet" in answer.out
    # The new file needs no --arch.
    assert same_logits(freqformer.load_model(tmp_path / "gfnet.safetensors"), model)


def test_without_a_name_the_keys_are_translated_alone(command, tmp_path):
    model = official_gfnet(tmp_path / "gfnet.pth")
    answer = command("convert", tmp_path / "gfnet.pth", tmp_path / "gfnet.safetensors")
    assert answer.code == 0, answer.err
    with safe_open(tmp_path / "gfnet.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    other = freqformer.create_model("test_gfnet", checkpoint=tmp_path / "gfnet.safetensors").eval()
    assert same_logits(other, model)


def test_a_folder_of_timm_is_converted(tmp_path):
    model = timm.create_model("test_dfformer", num_classes=3).eval()
    timm.models.save_for_hf(model, tmp_path / "folder")
    convert(f"local-dir:{tmp_path / 'folder'}", tmp_path / "df.safetensors")
    assert same_logits(freqformer.load_model(tmp_path / "df.safetensors"), model)
    (tmp_path / "folder" / "model.safetensors").unlink(missing_ok=True)
    torch.save(model.state_dict(), tmp_path / "folder" / "pytorch_model.bin")
    assert same_logits(freqformer.load_model(tmp_path / "folder"), model)


def test_nothing_is_overwritten_unless_told(refused, command, tmp_path):
    official_gfnet(tmp_path / "gfnet.pth")
    target = tmp_path / "gfnet.safetensors"
    target.write_text("precious")
    assert "--overwrite" in refused("convert", tmp_path / "gfnet.pth", target)
    assert target.read_text() == "precious"
    assert command("convert", tmp_path / "gfnet.pth", target, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("gfnet.pth", "gfnet.bin"), ".safetensors"),
        (("gfnet.pth", "nowhere/gfnet.safetensors"), "nowhere"),
        (("missing.pth", "gfnet.safetensors"), "missing.pth"),
        (("gfnet.pth", "gfnet.safetensors", "--arch", "test_dfformer"), "isotropic GFNet"),
        (("gfnet.pth", "gfnet.safetensors", "--arch", "resnet50"), "resnet50"),
        (("gfnet.pth",), "target"),
        ((), "source"),
    ],
)
def test_what_cannot_be_converted_is_one_line(refused, tmp_path, monkeypatch, arguments, word):
    official_gfnet(tmp_path / "gfnet.pth")
    monkeypatch.chdir(tmp_path)
    assert word in refused("convert", *arguments)
    assert not (tmp_path / "gfnet.safetensors").exists()
