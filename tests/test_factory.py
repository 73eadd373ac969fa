import json

import pytest
import torch
from safetensors.torch import save_file

import freqformer
from freqformer import FreqFormerError, create_model, load_model
from freqformer.checkpoints import save_model
from freqformer.tasks import Classification, ClassificationConfig


def make(name="test_freqformer", seed=0, **arguments):
    torch.manual_seed(seed)
    return create_model(name, **arguments).eval()


def official(model):
    """The model's weights under the keys of the official codes."""
    state = {}
    for key, value in model.state_dict().items():
        key = key.replace("stem.", "patch_embed.").replace("stages.0.blocks.", "blocks.")
        key = key.replace("token_mixer.complex_weight", "filter.complex_weight").replace("token_mixer.", "attn.")
        state[key] = value.flatten(1, 2) if key == "pos_embed" else value
    return state


def logits(model, height=32, width=32):
    x = torch.randn(2, model.stem.proj.in_channels, height, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(x)


@pytest.fixture
def run_folder(tmp_path):
    """A run's folder as training leaves it, and the network in it."""
    config = ClassificationConfig(arch="test_freqformer", input_size=(24, 40), interpolation="bilinear", crop_pct=0.8)
    torch.manual_seed(0)
    task = Classification(config, label_names=["ant", "bee", "cat"])
    save_model(tmp_path, task.model.state_dict(), task.describe())
    return tmp_path, task.model.eval()


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("gfnet-xs", "gfnet_xs"),
        ("GFNet-XS", "gfnet_xs"),
        ("freqformer-t", "freqformer_ti"),
        ("spectformer-ti", "spectformer_ti"),
        ("test-gfnet", "test_gfnet"),
    ],
)
def test_papers_spellings(spelling, name):
    with torch.device("meta"):
        model = create_model(spelling)
    assert model.pretrained_cfg["architecture"] == name
    assert model.training


def test_keywords_reach_the_model():
    model = create_model("test_freqformer", num_classes=4, img_size=(24, 40), num_heads=4, in_chans=1)
    assert model.num_classes == 4
    assert model.img_size == (24, 40)
    assert logits(model, 24, 40).shape == (2, 4)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(FreqFormerError, match="gfnet_xs"):
        create_model("gfnet-xxs")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"colour": "red"}, "colour"), ({"num_heads": 5}, "num_heads"), ({"spectral_depth": 9}, "spectral_depth")],
)
def test_wrong_keywords_are_named(arguments, word):
    with pytest.raises(FreqFormerError, match=word) as caught:
        create_model("test_freqformer", **arguments)
    assert "test_freqformer" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_create_model_loads_a_checkpoint(tmp_path):
    source = make()
    torch.save({"model": official(source)}, tmp_path / "x.pth")
    assert torch.equal(logits(create_model("test_freqformer", checkpoint=tmp_path / "x.pth").eval()), logits(source))
    other = create_model("test_freqformer", checkpoint=str(tmp_path / "x.pth"), num_classes=3, img_size=48).eval()
    assert logits(other, 48, 48).shape == (2, 3)


def test_a_runs_folder_and_its_file_say_what_they_hold(run_folder, tmp_path_factory):
    folder, source = run_folder
    alone = tmp_path_factory.mktemp("elsewhere") / "w.safetensors"
    alone.write_bytes((folder / "model.safetensors").read_bytes())
    for path in (folder, str(folder), folder / "model.safetensors", alone):
        model = load_model(path)
        assert not model.training
        assert model.img_size == (24, 40)
        assert model.pretrained_cfg["label_names"] == ["ant", "bee", "cat"]
        assert tuple(model.pretrained_cfg["input_size"]) == (3, 24, 40)
        assert model.pretrained_cfg["interpolation"] == "bilinear"
        assert model.pretrained_cfg["crop_pct"] == 0.8
        assert torch.equal(logits(model, 24, 40), logits(source, 24, 40))


@pytest.mark.parametrize("arch", ["test_freqformer", "test-freqformer", "Test-FreqFormer"])
def test_the_right_arch_may_be_named(run_folder, arch):
    assert load_model(run_folder[0], arch=arch).num_classes == 3


@pytest.mark.parametrize("arch", ["test_gfnet", "gfnet_xs"])
def test_another_arch_is_refused(run_folder, arch):
    with pytest.raises(FreqFormerError, match=f"test_freqformer.*{arch}"):
        load_model(run_folder[0], arch=arch)


@pytest.mark.parametrize("layout", [official, lambda model: model.state_dict()], ids=["official", "ours"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("arguments", [{}, {"num_classes": 3, "img_size": 48, "in_chans": 1}, {"num_classes": 0}])
def test_bare_weights_need_the_arch_alone(tmp_path, layout, suffix, arguments):
    source = make(**arguments)
    path = tmp_path / f"bare{suffix}"
    state = {key: value.contiguous() for key, value in layout(source).items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save({"model": state}, path)
    model = load_model(path, arch="test-freqformer")
    assert not model.training
    assert model.num_classes == source.num_classes
    assert model.img_size == source.img_size
    assert tuple(model.pretrained_cfg["input_size"][1:]) == source.img_size
    assert torch.equal(logits(model), logits(source))
    with pytest.raises(FreqFormerError, match="--arch"):
        load_model(path)


@pytest.mark.parametrize("name", ["test_gfnet_h", "test_spectformer_h", "test_dfformer", "test_cdfformer", "test_afno"])
@pytest.mark.parametrize("arguments", [{}, {"num_classes": 3, "in_chans": 1}, {"num_classes": 0}, {"img_size": 64}])
def test_bare_weights_of_pyramids_need_the_arch_alone(tmp_path, name, arguments):
    torch.manual_seed(0)
    source = create_model(name, **arguments).eval()
    torch.save(source.state_dict(), tmp_path / "bare.pth")
    model = load_model(tmp_path / "bare.pth", arch=name)
    assert model.num_classes == source.num_classes
    if name != "test_afno":  # nothing in it tells a size
        assert model.img_size == source.img_size
    x = torch.randn(2, arguments.get("in_chans", 3), *source.img_size)
    assert torch.equal(model(x), source(x))


def test_bare_weights_without_token_labels(tmp_path):
    source = create_model("test_spectformer_h", token_label=False).eval()
    torch.save(source.state_dict(), tmp_path / "bare.pth")
    model = load_model(tmp_path / "bare.pth", arch="test_spectformer_h")
    assert not model.token_label
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), source(x))


def test_bare_weights_of_a_non_square_grid(tmp_path):
    source = make(img_size=(24, 40))
    torch.save(source.state_dict(), tmp_path / "bare.pth")
    assert load_model(tmp_path / "bare.pth", arch="test_freqformer").img_size == (24, 40)


def test_bare_weights_of_another_arch_are_refused(tmp_path):
    torch.save(official(make("test_gfnet")), tmp_path / "bare.pth")
    with pytest.raises(FreqFormerError, match=r"bare\.pth|state dict"):
        load_model(tmp_path / "bare.pth", arch="test_freqformer")


def test_weights_with_a_class_token_are_refused(tmp_path):
    """A DeiT's position embedding, 17 tokens for a 4x4 grid, is no square."""
    torch.save({**official(make()), "pos_embed": torch.zeros(1, 17, 32)}, tmp_path / "deit.pth")
    with pytest.raises(FreqFormerError):
        load_model(tmp_path / "deit.pth", arch="test_freqformer")


def test_a_folder_that_timm_wrote_is_read(tmp_path):
    """timm's own config.json has no model_args where there are none, and no label_names."""
    model = make()
    timm_models = pytest.importorskip("timm.models")
    timm_models.save_for_hf(model, tmp_path, safe_serialization=True)
    assert torch.equal(logits(load_model(tmp_path)), logits(model))


@pytest.mark.parametrize("config", [{"model_type": "bert", "hidden_size": 32}, ["x"], {"architecture": "resnet18"}])
def test_a_config_of_another_program_is_one_line(tmp_path, config):
    save_file(make().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FreqFormerError) as caught:
        load_model(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_the_package_offers_them():
    assert freqformer.load_model is load_model
    assert freqformer.create_model is create_model
