"""Adapters in files: loaded in another process, folded there, refused where they do not belong."""

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from freqformer import adapters
from freqformer.adapters.storage import save_all
from freqformer.errors import FreqFormerError

OWN = ("filter2d", "filter2d_real", "filter1d", "ssf", "linear", "bias", "adapter", "vpt_shallow", "vpt_deep", "rlrr")

ELSEWHERE = """
import sys, timm, torch
from freqformer import adapters
from freqformer.checkpoints import read_weights
folder = sys.argv[1]
model = timm.create_model("vit_base_patch16_224", embed_dim=48, depth=2, num_heads=4, img_size=64, num_classes=5)
model = model.double().eval()
model.load_state_dict(torch.load(f"{folder}/bare.pt", weights_only=True))
x = torch.load(f"{folder}/x.pt", weights_only=True)
for name in sys.argv[2:]:
    adapters.load(model, f"{folder}/{name}")
with torch.no_grad():
    loaded = model(x)
    left = adapters.fold_all(model)
    torch.save({"loaded": loaded, "folded": model(x), "left": left}, f"{folder}/y.pt")
"""


def elsewhere(folder, *names):
    """The outputs of a process that knows only the files."""
    subprocess.run([sys.executable, "-c", ELSEWHERE, str(folder), *names], check=True, timeout=300)
    return torch.load(folder / "y.pt", weights_only=True)


@pytest.mark.parametrize(
    "names",
    [["vpt_deep", "filter1d", "adapter", "bias"], pytest.param(["filter2d", "lora", "linear"], marks=pytest.mark.slow)],
)
def test_another_process_has_the_same_outputs(small, images, move, tmp_path, names):
    model = small()
    x = images(model)
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    torch.save(x, tmp_path / "x.pt")
    for name in names:
        options = {"tokens": "patch+prompt"} if name == "filter1d" else {}
        move(adapters.attach(model, name, **options))
    save_all(model, tmp_path)
    with torch.no_grad():
        y = model(x)
    found = elsewhere(tmp_path, *names)
    assert torch.allclose(found["loaded"], y, rtol=0, atol=1e-12)
    assert torch.allclose(found["folded"], y, rtol=0, atol=1e-12)
    assert set(found["left"]) == {"vpt_deep", "adapter"} & set(names)


@pytest.mark.parametrize("name", OWN)
def test_what_is_saved_is_loaded(small, images, move, tmp_path, name):
    model = small(dtype=torch.float32)
    x = images(model)
    handle = move(adapters.attach(model, name))
    with torch.no_grad():
        y = model(x)
        handle.save(tmp_path / name)
        files = {path.name: path.stat().st_size for path in (tmp_path / name).iterdir()}
        assert files.keys() == {"adapter.json", "adapter.safetensors"}
        again = adapters.load(small(dtype=torch.float32), tmp_path / name)
        assert torch.equal(again.model(x), y)
        # Half of the same weights are the same weights.
        half = adapters.load(small(dtype=torch.bfloat16), tmp_path / name)
        assert float((half.model(x.bfloat16()).float() - y).abs().max()) <= 0.1 * max(1.0, float(y.abs().max()))


def test_other_backbones_and_other_weights_are_refused(small, move, tmp_path):
    move(adapters.attach(small(), "filter2d")).save(tmp_path)
    for options, why in (
        ({"depth": 3}, "2 blocks"),
        ({"embed_dim": 32}, "48 channels"),
        ({"reg_tokens": 2}, "1 prefix tokens"),
    ):
        model = small(**options)
        with pytest.raises(FreqFormerError, match=why):
            adapters.load(model, tmp_path)
        assert adapters.handles(model) == []
    model = small()
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.copy_(parameter.flatten().roll(1).view_as(parameter))
    with pytest.raises(FreqFormerError, match="other weights"):
        adapters.load(model, tmp_path)
    assert adapters.load(small(), tmp_path).name == "filter2d"


def test_a_new_head_is_no_other_backbone(small, move, tmp_path):
    model = small()
    move(adapters.attach(model, "linear")).save(tmp_path / "head")
    move(adapters.attach(model, "lora")).save(tmp_path / "lora")
    other = small(num_classes=3)
    adapters.load(other, tmp_path / "lora")
    adapters.load(other, tmp_path / "head")
    assert other.head.out_features == 5
    assert torch.equal(other.head.weight, model.head.weight)


@pytest.mark.parametrize("order", [("filter2d", "lora"), ("lora", "filter2d"), ("rlrr", "bias"), ("bias", "rlrr")])
def test_an_adapter_is_known_beside_others(small, images, move, tmp_path, order):
    """Saved from a model that had others on it, loaded onto a bare one or one that has others."""
    model = small()
    for name in order:
        move(adapters.attach(model, name))
    save_all(model, tmp_path)
    x = images(model)
    with torch.no_grad():
        y = model(x)
        for again in (order, order[::-1]):
            fresh = small()
            for name in again:
                adapters.load(fresh, tmp_path / name)
            assert torch.allclose(fresh(x), y, rtol=0, atol=1e-12), again


def test_another_image_size_stretches_the_filters(small, images, move, tmp_path):
    for name in ("filter2d", "filter2d_real", "filter1d"):
        handle = move(adapters.attach(small(), name))
        handle.save(tmp_path / name)
        large = small(img_size=(64, 112))
        with torch.no_grad():
            large.pos_embed[:, :1] = small().pos_embed[:, :1]
        again = adapters.load(large, tmp_path / name)
        assert again.model(images(large)).shape == (2, 5)
        kind = "filter_weight" if name == "filter2d_real" else "complex_weight"
        wanted = (15, 48, 2) if name == "filter1d" else (4, 4, 48, 2)[: 4 if name == "filter2d" else 3]
        assert again.state_dict()[f"0.{kind}"].shape == wanted
        assert torch.equal(again.state_dict()["0.scale"], handle.state_dict()["0.scale"])


def test_damaged_files_are_one_line(small, move, tmp_path):
    handle = move(adapters.attach(small(), "filter2d"))

    def fails(folder, why):
        model = small()
        with pytest.raises(FreqFormerError, match=why) as caught:
            adapters.load(model, folder)
        assert "\n" not in str(caught.value)
        assert adapters.handles(model) == []

    fails(tmp_path / "absent", "holds no adapter")
    folder = tmp_path / "a"

    def fresh():
        handle.save(folder)
        return json.loads((folder / "adapter.json").read_text())

    fresh()
    (folder / "adapter.json").write_text("{")
    fails(folder, "cannot read")
    for wrong in ([], {}, {"method": "filter2d"}):
        (folder / "adapter.json").write_text(json.dumps(wrong))
        fails(folder, "describes no adapter")
    for key, value, why in (
        ("method", "filter9", "no method"),
        ("options", {"r": 3}, "no option"),
        ("options", 3, "describes no adapter"),
        ("backbone", "vit", "describes no adapter"),
        ("backbone", {}, "blocks"),
    ):
        (folder / "adapter.json").write_text(json.dumps({**fresh(), key: value}))
        fails(folder, why)
    fresh()
    weights = folder / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    fails(folder, "adapter.safetensors")
    weights.unlink()
    fails(folder, "adapter.safetensors")
    state = {name: value.clone() for name, value in handle.state_dict().items()}
    for changed, why in (
        ({k: v for k, v in state.items() if k != "0.scale"}, "lacks 0.scale"),
        ({**state, "9.scale": state["0.scale"].clone()}, "has 9.scale"),
        ({**state, "0.scale": torch.zeros(7)}, "must be"),
    ):
        safetensors.torch.save_file(changed, weights)
        fails(folder, why)


def test_damaged_peft_folders_are_one_line(small, move, tmp_path):
    handle = move(adapters.attach(small(), "lora"))
    for file, text in (
        ("adapter_config.json", "{"),
        ("adapter_config.json", '{"peft_type": "NONE"}'),
        ("adapter_config.json", "[]"),
        ("adapter_model.safetensors", ""),
    ):
        handle.save(tmp_path)
        (tmp_path / file).write_text(text)
        model = small()
        with pytest.raises(FreqFormerError) as caught:
            adapters.load(model, tmp_path)
        assert "\n" not in str(caught.value)
        assert adapters.handles(model) == []
    handle.save(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(FreqFormerError):
        adapters.load(small(), tmp_path)


def test_peft_reads_the_folder_itself(small, images, move, tmp_path):
    from peft import PeftModel

    from freqformer.adapters.projections import split

    model = small(dtype=torch.float32)
    x = images(model)
    move(adapters.attach(model, "lora")).save(tmp_path)
    with torch.no_grad():
        y = model(x)
        # PEFT alone has to find query, key and value: another adapter keeps them apart.
        bare = small(dtype=torch.float32)
        split(adapters.attach(bare, "bias").adapters, "test")
        assert torch.allclose(PeftModel.from_pretrained(bare, str(tmp_path))(x), y, atol=1e-5)


def test_saving_replaces_and_says_where_it_cannot(small, tmp_path):
    handle = adapters.attach(small(), "ssf")
    handle.save(tmp_path)
    with torch.no_grad():
        next(handle.parameters()).fill_(7)
    handle.save(tmp_path)
    assert float(adapters.load(small(), tmp_path).state_dict()["0.scale"][0]) == 7
    (tmp_path / "file").write_text("")
    with pytest.raises(FreqFormerError, match="cannot write"):
        handle.save(tmp_path / "file")


def test_prompts_that_a_filter_was_trained_beside_come_first(small, tmp_path):
    model = small()
    adapters.attach(model, "vpt_deep", num_tokens=4)
    handle = adapters.attach(model, "filter1d", tokens="patch+prompt")
    assert handle.state_dict()["0.complex_weight"].shape == ((16 + 4) // 2 + 1, 48, 2)
    handle.save(tmp_path)
    with pytest.raises(FreqFormerError, match="4 prompt tokens"):
        adapters.load(small(), tmp_path)
    bare = small()
    adapters.attach(bare, "filter1d", tokens="patch+prompt")
    with pytest.raises(FreqFormerError, match="attach the prompts before filter1d"):
        adapters.attach(bare, "vpt_deep")


def outputs(model, x):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize(("first", "second"), [("lora", "filter2d"), ("filter2d", "lora"), ("ssf", "bias")])
def test_a_folder_of_another_method_is_replaced(small, images, move, tmp_path, first, second):
    adapters.attach(small(), first).save(tmp_path / "a")
    model = small()
    handle = move(adapters.attach(model, second))
    handle.save(tmp_path / "a")
    fresh = small()
    assert adapters.load(fresh, tmp_path / "a").name == second
    x = images(model)
    assert torch.equal(outputs(fresh, x), outputs(model, x))


def test_ia3_is_loaded_again(small, images, move, tmp_path):
    model = small()
    move(adapters.attach(model, "ia3", feedforward_modules=["fc1", "fc2"])).save(tmp_path / "a")
    fresh = small()
    adapters.load(fresh, tmp_path / "a")
    again = small()
    adapters.reattach(again, adapters.describe_all(model))
    again.load_state_dict(model.state_dict())
    x = images(model)
    assert torch.equal(outputs(fresh, x), outputs(model, x))
    assert torch.equal(outputs(again, x), outputs(model, x))


def test_what_cannot_be_loaded_leaves_the_classifier(small, images, move, tmp_path):
    other = small(num_classes=7)
    move(adapters.attach(other, "linear")).save(tmp_path / "a")
    model = small()
    move(adapters.attach(model, "linear"))
    x = images(model)
    before = outputs(model, x)
    with pytest.raises(FreqFormerError, match="linear is on this model already"):
        adapters.load(model, tmp_path / "a")
    assert model.num_classes == 5
    assert torch.equal(outputs(model, x), before)
    model = small()
    before = outputs(model, x)
    handle = adapters.load(model, tmp_path / "a")
    assert torch.equal(outputs(model, x), outputs(other, x))
    handle.detach()
    assert model.num_classes == 5
    assert torch.equal(outputs(model, x), before)


@pytest.mark.parametrize("names", [("filter2d", "filter1d"), ("filter2d_real", "ssf", "filter2d")])
def test_the_order_of_loading_is_none(small, images, move, tmp_path, names):
    model = small()
    for name in names:
        move(adapters.attach(model, name))
    save_all(model, tmp_path)
    fresh = small()
    for name in reversed(names):
        adapters.load(fresh, tmp_path / name)
    x = images(model)
    assert torch.equal(outputs(fresh, x), outputs(model, x))


def test_a_folded_model_is_described_and_made_again(small, images, move):
    model = small()
    for name in ("linear", "lora", "ssf", "filter2d"):
        move(adapters.attach(model, name))
    adapters.fold_all(model)
    again = small()
    adapters.reattach(again, adapters.describe_all(model))
    again.load_state_dict(model.state_dict())
    x = images(model)
    assert torch.equal(outputs(again, x), outputs(model, x))


def test_what_is_saved_after_a_fold_belongs_to_the_folded_weights(small, images, move, tmp_path):
    model = small()
    lora = move(adapters.attach(model, "lora"))
    filters = move(adapters.attach(model, "filter2d"))
    lora.fold()
    filters.save(tmp_path / "a")
    with pytest.raises(FreqFormerError, match="other weights"):
        adapters.load(small(), tmp_path / "a")
    x = images(model)
    wanted = outputs(model, x)
    filters.detach()
    adapters.load(model, tmp_path / "a")
    assert torch.equal(outputs(model, x), wanted)


@pytest.mark.parametrize("name", ["rlrr", "lora", "ssf"])
def test_biases_that_are_trained_are_not_folded_into(small, move, name):
    model = small()
    bias = move(adapters.attach(model, "bias"))
    other = move(adapters.attach(model, name))
    with pytest.raises(FreqFormerError, match="fold bias before"):
        other.fold()
    assert adapters.fold_all(model) == []
    with pytest.raises(FreqFormerError, match="folded"):
        bias.detach()


@pytest.mark.parametrize(
    ("name", "options"),
    [("vpt_deep", {"num_tokens": "8"}), ("vpt_deep", {"num_tokens": 2.5}), ("adapter", {"adapter_ratio": True})],
)
def test_options_of_another_type_are_refused(small, name, options):
    with pytest.raises(FreqFormerError, match="must be int"):
        adapters.attach(small(), name, **options)
