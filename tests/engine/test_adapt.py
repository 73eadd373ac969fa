"""Whole runs of adaptation: what they train, what they leave, stopping and resuming, the command line."""

import json
import warnings
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

import freqformer
from freqformer import FreqFormerError, adapters
from freqformer.engine import RESUME_LAST, Interrupted, run
from freqformer.tasks import Adaptation, AdaptationConfig

FIRST = {"method": "lora", "peft": {"r": 2, "lora_dropout": 0.2}, "freqfit": "filter2d"}
METHODS = {
    "linear": {"method": "linear", "freqfit": "none"},
    "bias": {"method": "bias", "freqfit": "filter1d"},
    "prompts": {"method": "vpt_deep", "freqfit": "filter2d_real", "options": {"num_tokens": 2, "prompt_dropout": 0.1}},
    "bottleneck": {"method": "adapter", "freqfit": "ssf", "options": {"adapter_ratio": 4}},
    "rlrr": {"method": "rlrr", "freqfit": "filter2d_real"},
    "full": {"method": "full", "freqfit": "filter2d"},
    "lora": FIRST,
}


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Pre-trained weights of timm's smallest ViT, made up."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return str(path)


@pytest.fixture(scope="session")
def small(weights):
    """Settings of an adaptation of a second or two."""

    def make(folder, **changes):
        settings = {
            "encoder": "test_vit",
            "encoder_weights": weights,
            "input_size": 32,
            "data_set": "DIGITS",
            "limit_train": 64,
            "epochs": 2,
            "batch_size": 16,
            "lr": 1e-2,
            "num_workers": 0,
            "precision": "32-true",
            "accelerator": "cpu",
            "output_dir": str(folder),
            **FIRST,
        }
        return AdaptationConfig(**{**settings, **changes})

    return make


@pytest.fixture(scope="session")
def adapted(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted") / "run"
    run(small(folder))
    return folder


def logits(model, seed=0):
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.eval()(images)


def test_the_backbone_is_left_alone(small, adapted, weights):
    before, after = load_file(weights), load_file(adapted / "model.safetensors")
    names = {name: name.replace(".base_layer.", ".") for name in after}
    kept = {names[name]: value for name, value in after.items() if names[name] in before and "head" not in name}
    assert len(kept) > 50
    for name, value in kept.items():
        if name != "pos_embed":  # of another grid
            assert torch.equal(value, before[name]), name
    fused = torch.cat([after[f"blocks.0.attn.qkv.{part}.base_layer.weight"] for part in ("query", "key", "value")])
    assert torch.equal(fused, before["blocks.0.attn.qkv.weight"])


def test_the_optimiser_knows_what_is_trained_alone(small, adapted):
    checkpoint = torch.load(adapted / "checkpoints/last.ckpt", weights_only=True)
    (optimizer,) = checkpoint["optimizer_states"]
    task, _, _ = small(adapted).build()
    trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    assert len(optimizer["state"]) == len(trained) < len(list(task.model.parameters()))
    held = sum(value.numel() for row in optimizer["state"].values() for value in row.values() if value.ndim)
    assert held == 2 * sum(parameter.numel() for parameter in trained)


def test_the_start_says_how_much_is_trained(small, tmp_path, capsys):
    config = small(tmp_path / "run", method="linear", peft={}, freqfit="none", epochs=1)
    run(config)
    head = config.build()[0].model.get_classifier()
    assert f"({sum(parameter.numel() for parameter in head.parameters()):,} trained)" in capsys.readouterr().out


def test_the_frozen_part_is_in_evaluation_mode(small, tmp_path):
    task, _, _ = small(tmp_path, encoder_args={"drop_path_rate": 0.5}).build()
    task.train()
    modes = {name: module.training for name, module in task.model.named_modules()}
    assert not modes["blocks.0.drop_path1"]
    assert not modes["blocks.0.attn.qkv.query.base_layer"]
    assert modes["blocks.0.attn.qkv.query.lora_dropout.default"]
    assert modes["head"]
    assert modes["adapters.filter2d.0"]
    task.eval()
    assert not any(module.training for module in task.model.modules())


def test_full_fine_tuning_trains_everything(small, tmp_path):
    task, _, _ = small(tmp_path, **METHODS["full"], peft={}).build()
    task.train()
    assert all(parameter.requires_grad for parameter in task.model.parameters())
    assert all(module.training for module in task.model.modules())


def test_the_run_can_be_loaded_by_itself(adapted):
    model = freqformer.load_model(adapted)
    assert [handle.name for handle in adapters.handles(model)] == ["linear", "lora", "filter2d"]
    assert model.num_classes == 10
    saved = load_file(adapted / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_what_was_learned_lies_beside_it_and_is_small(adapted, weights):
    whole = timm.create_model("test_vit", img_size=(32, 32), num_classes=3)
    given = {name: value for name, value in load_file(weights).items() if "head" not in name}
    whole.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(given, whole), strict=False)
    for name in ("linear", "lora", "filter2d"):
        adapters.load(whole, adapted / "adapters" / name)
    assert torch.equal(logits(whole), logits(freqformer.load_model(adapted)))
    size = sum(path.stat().st_size for path in (adapted / "adapters").rglob("*.safetensors"))
    assert size < (adapted / "model.safetensors").stat().st_size / 5


def test_every_command_takes_the_run(adapted, command, tmp_path):
    figures = json.loads(
        command("eval", "--model-path", adapted, "--data-set", "DIGITS", "--precision", "32-true", "--json").out
    )
    best = json.loads((adapted / "metrics.json").read_text())["best"]
    assert figures["top1"] == pytest.approx(best["top1"])
    assert command("convert", adapted, tmp_path / "a.safetensors").code == 0
    assert torch.equal(
        logits(freqformer.load_model(tmp_path / "a.safetensors")), logits(freqformer.load_model(adapted))
    )


@pytest.mark.slow
def test_it_exports(adapted, command, tmp_path):
    answer = command("export", "--model-path", adapted, tmp_path / "a.onnx")
    assert answer.code == 0, answer.err
    assert "checked against PyTorch" in answer.out
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exported = freqformer.factory.load_classifier(tmp_path / "a.onnx")(images)
    torch.testing.assert_close(exported, logits(freqformer.load_model(adapted)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_an_adaptation_is_resumed_bit_for_bit(small, tmp_path, signal_at, left_behind, name):
    changes = {"peft": {}, **METHODS[name], "model_ema": True, "model_ema_decay": 0.9}
    run(small(tmp_path / "whole", **changes))
    disarm = signal_at(3)
    with pytest.raises(Interrupted):
        run(small(tmp_path / "stopped", **changes))
    disarm()
    run(small(tmp_path / "stopped", resume=RESUME_LAST, **changes))
    left, right = left_behind(tmp_path / "whole"), left_behind(tmp_path / "stopped")
    assert left.keys() == right.keys()
    assert [key for key in left if left[key] != right[key]] == []
    assert torch.isfinite(logits(freqformer.load_model(tmp_path / "whole"))).all()


def test_a_run_of_this_package_is_adapted(small, tmp_path, command):
    words = "--arch test_freqformer --data-set DIGITS --limit-train 32 --epochs 1 --batch-size 16 --num-workers 0"
    assert command("train", *words.split(), "--output-dir", tmp_path / "encoder").code == 0
    config = small(tmp_path / "run", encoder=str(tmp_path / "encoder"), encoder_weights=None, input_size=None)
    before = load_file(tmp_path / "encoder/model.safetensors")
    task, _, _ = config.build()
    assert torch.equal(task.model.state_dict()["stem.proj.weight"], before["stem.proj.weight"])
    assert not torch.equal(task.model.state_dict()["head.weight"], before["head.weight"])
    run(config)
    assert freqformer.load_model(tmp_path / "run").num_classes == 10
    with pytest.raises(FreqFormerError, match="adapted model"):
        small(tmp_path / "again", encoder=str(tmp_path / "run"), encoder_weights=None).build()


def test_flags_reach_the_method(command, weights, tmp_path):
    words = "adapt --encoder test_vit --data-set DIGITS --limit-train 16 --epochs 1 --batch-size 16 --num-workers 0"
    more = "--method vpt --num-tokens 3 --prompt-dropout 0.1 --freqfit filter1d --tokens patch+prompt --input-size 32"
    answer = command(*words.split(), *more.split(), "--encoder-weights", weights, "--output-dir", tmp_path / "run")
    assert answer.code == 0, answer.err
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["method"] == "vpt_deep"
    assert config["options"] == {"num_tokens": 3, "prompt_dropout": 0.1, "tokens": "patch+prompt"}
    again = command("adapt", "--config", tmp_path / "run/config.yaml", "--output-dir", tmp_path / "again")
    assert again.code == 0, again.err
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "again"))
    assert first["adapters.vpt_deep.tokens"].shape == (6, 3, 64)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--encoder no_such_vit", "no encoder 'no_such_vit'"),
        ("--encoder freqformer_n", "give its file with --encoder-weights"),
        ("--encoder test_vit --no-pretrained --method loar", "no method 'loar': did you mean lora?"),
        ("--encoder test_vit --no-pretrained --freqfit filter3d", "--freqfit must be one of"),
        ("--encoder test_vit --no-pretrained --method lora --num-tokens 3", "--num-tokens is an option of neither"),
        ("--encoder test_vit --no-pretrained --method bias --peft.r 3", "--peft is for methods of Hugging Face PEFT"),
        ("--encoder test_vit --no-pretrained --method lora --peft.rank 3", "LoraConfig has no field 'rank'"),
        ("--encoder resnet18 --no-pretrained", "cannot adapt resnet18"),
        ("--encoder test_dfformer --no-pretrained", "cannot adapt test_dfformer: it is a pyramid"),
        ("--encoder sup_vitb16_imagenet21k --weights-root /nowhere/at/all", "--weights-root"),
        ("--encoder test_vit --no-pretrained --strategy fsdp", "--strategy must be ddp"),
        (
            "--encoder test_vit --no-pretrained --recipe imagenet_gfnet_xs",
            "the recipe imagenet_gfnet_xs is for `freqformer train`",
        ),
    ],
)
def test_wrong_use_is_one_line(refused, tmp_path, words, said):
    assert said in refused("adapt", "--data-set", "DIGITS", "--output-dir", tmp_path / "run", *words.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["nothing", "another network", "a part"])
def test_weights_that_do_not_fit_are_refused(small, weights, tmp_path, kind):
    state = {
        "nothing": {"foo": torch.zeros(2)},
        "another network": timm.create_model("test_resnet").state_dict(),
        "a part": {name: value for name, value in load_file(weights).items() if "blocks.1." not in name},
    }[kind]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(FreqFormerError, match="does not fit test_vit"):
        small(tmp_path / "run", encoder_weights=str(tmp_path / "w.safetensors")).build()


def test_weights_of_as_many_classes_leave_the_classifier_new(small, tmp_path):
    torch.manual_seed(1)
    state = timm.create_model("test_vit", num_classes=10, img_size=(32, 32)).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    task, _, _ = small(tmp_path / "run", encoder_weights=str(tmp_path / "w.safetensors")).build()
    assert torch.equal(task.model.cls_token, state["cls_token"])
    assert not torch.equal(task.model.head.weight, state["head.weight"])


def test_it_is_no_checkpoint_of_a_bare_model(adapted, refused, tmp_path):
    words = "--arch test_freqformer --data-set DIGITS --num-workers 0"
    said = refused("train", *words.split(), "--finetune", adapted, "--output-dir", tmp_path / "run")
    assert "is an adapted model" in said


def test_evaluation_at_another_size(adapted, command):
    answer = command("eval", "--model-path", adapted, "--data-set", "DIGITS", "--input-size", "64", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["images"] == 355


def test_it_works_in_the_users_own_trainer(small, tmp_path):
    from lightning import Trainer
    from torch.utils.data import DataLoader

    task, _, _ = small(tmp_path).build()
    assert isinstance(task, Adaptation)
    images = torch.randn(8, 3, 32, 32)
    targets = torch.arange(8)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    loader = DataLoader([{"image": i, "target": t} for i, t in zip(images, targets, strict=True)], batch_size=4)
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **silent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning misses workers, loggers and steps to log.
        trainer.fit(task, loader, loader)
    changed = {name for name, value in task.model.state_dict().items() if not torch.equal(value, before[name])}
    trained = {name for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    # The last filter moves patch tokens alone, and this network classifies its class token.
    assert {name for name in trained if ".filter2d.6." not in name} <= changed <= trained


DOCS = Path(__file__).parents[2] / "docs" / "freqfit.md"


def test_upstreams_line_is_translated(monkeypatch, command):
    line = next(line for line in DOCS.read_text().splitlines() if line.startswith("freqformer adapt --recipe"))
    seen = []
    monkeypatch.setattr(
        "freqformer.engine.run",
        lambda config: seen.append(config) or {"best": dict.fromkeys(("top1", "top5", "loss"), 0)},
    )
    assert command(*line.split()[1:]).code == 0
    (config,) = seen
    # bash run.sh cifar100 sup_vitb16_imagenet21k 64 0.1 0.01 0 0 freqfit, with what it sets itself
    told = {
        "data_set": "cifar100",
        "encoder": "sup_vitb16_imagenet21k",
        "batch_size": 64,
        "lr": 0.1,
        "weight_decay": 0.01,
        "freqfit": "filter2d",
        "method": "lora",
        "peft": {"r": 8, "lora_alpha": 8},
        "seed": 42,
        "epochs": 100,
        "opt": "sgd",
        "momentum": 0.9,
        "lr_base_batch": None,
        "warmup_epochs": 5,
        "sched": "cosine",
        "min_lr": 0,
        "warmup_lr": 0,
        "sched_by_epoch": True,
        "warmup_prefix": True,
        "decay_all": True,
        "clip_grad": None,
        "smoothing": 0,
        "mixup": 0,
        "cutmix": 0,
        "aa": "none",
        "hflip": 0,
        "resize": "squash",
        "reprob": 0,
    }
    assert {name: getattr(config, name) for name in told} == told


@pytest.mark.parametrize(("word", "name"), [("freqfit", "filter2d"), ("FreqFit*", "filter2d_real"), ("none", "none")])
def test_upstreams_words_are_understood(word, name):
    assert AdaptationConfig(freqfit=word).freqfit == name


@pytest.mark.parametrize(("word", "name"), [("tinytl-bias", "bias"), ("end2end", "full"), ("prompt", "vpt_deep")])
def test_upstreams_transfer_types_are_understood(word, name):
    assert AdaptationConfig(method=word).method == name
