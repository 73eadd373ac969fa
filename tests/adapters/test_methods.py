"""Options, names and counts of the methods, PEFT's among them, and a method from outside."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from freqformer import adapters
from freqformer.adapters.handle import ALIASES, METHODS, Handle, method
from freqformer.errors import FreqFormerError

BUILT = "ignore:.*(ninja|CUDA|cpp_extension|BOFT).*"


def count(handle):
    return sum(parameter.numel() for parameter in handle.parameters())


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("freqfit", "filter2d"),
        ("FreqFit*", "filter2d_real"),
        ("tinytl-bias", "bias"),
        ("vpt-deep", "vpt_deep"),
        ("Filter2D-Real", "filter2d_real"),
    ],
)
def test_upstreams_names(small, alias, name):
    assert adapters.attach(small(), alias).name == name


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("filter3d", {}, "did you mean filter"),
        ("nothing-like-it", {}, "choose one of"),
        ("filter2d", {"rank": 3}, "has no option 'rank': it has none"),
        ("vpt_deep", {"num_token": 3}, "it has num_tokens"),
        ("vpt_deep", {"num_tokens": 0}, "num_tokens must be at least 1"),
        ("vpt_deep", {"prompt_dropout": 1.0}, "below 1"),
        ("adapter", {"adapter_ratio": 0}, "adapter_ratio must be between"),
        ("adapter", {"adapter_ratio": 49}, "adapter_ratio must be between"),
        ("filter1d", {"tokens": "all"}, "patch or patch"),
        ("lora", {"rank": 3}, "has no field 'rank'"),
        ("lora", {"r": 0}, "should be a positive integer"),
        ("lora", {"target_modules": ["nowhere"]}, "PEFT cannot put lora"),
        ("lora", {"modules_to_save": ["head"]}, "with the method linear"),
        ("lora", {"bias": "all"}, "with the method bias"),
        ("lora", {"layers_to_transform": [7]}, "none of 2 blocks"),
        ("ia3", {}, "PEFT cannot put ia3"),
        ("c3a", {}, "PEFT cannot put c3a"),
        ("adalora", {"total_step": 10}, "AdaLoRA is not taken"),
        ("lora", {"init_lora_weights": "pissa_niter_4"}, "take pissa"),
        ("prefix_tuning", {}, "for language models"),
        ("prompt_tuning", {}, "for language models"),
        (3, {}, "a method is a name"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_no_trace(small, images, name, options, why):
    model = small()
    keys, flags = list(model.state_dict()), [parameter.requires_grad for parameter in model.parameters()]
    x = images(model)
    with torch.no_grad():
        y = model(x)
        with pytest.raises(FreqFormerError, match=why) as caught:
            adapters.attach(model, name, **options)
        assert torch.equal(model(x), y)
    assert "\n" not in str(caught.value)
    assert list(model.state_dict()) == keys
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert adapters.handles(model) == []


HUB = {
    "lora": {"r": 4, "lora_dropout": 0.1, "use_rslora": True},
    "dora": {"r": 4, "use_dora": True},
    "pissa": {"r": 4, "init_lora_weights": "pissa"},
    "vera": {"r": 8},
    "boft": {},
    "fourierft": {"n_frequency": 30},
    "loha": {},
    "lokr": {},
    "oft": {"oft_block_size": 16},
    "hra": {},
    "ia3": {"feedforward_modules": ["mlp.fc1"], "target_modules": ["attn.proj", "mlp.fc1"]},
    "pvera": {},
}


@pytest.mark.filterwarnings(BUILT, "ignore:Caught signal:UserWarning")
@pytest.mark.parametrize("name", HUB)
def test_pefts_methods(small, images, move, tmp_path, name):
    method = "lora" if name in ("dora", "pissa") else name
    model = small(dtype=torch.float32)
    x = images(model)
    with torch.no_grad():
        y = model(x)
    handle = move(adapters.attach(model, method, **HUB[name]))
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in handle.parameters())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count(handle)
    with torch.no_grad():
        moved = model(x)
        assert not torch.equal(moved, y)
        handle.save(tmp_path)
        handle.detach()
        assert torch.equal(model(x), y)
        again = adapters.load(model, tmp_path)
        assert again.name == method
        assert torch.allclose(model(x), moved, atol=1e-6)
        again.fold()
        assert torch.allclose(model(x), moved, atol=2e-5 * float(moved.abs().max()))
    assert adapters.handles(model) == []


def test_a_peft_config_is_taken(small):
    from peft import LoraConfig

    model = small()
    handle = adapters.attach(model, LoraConfig(r=2, target_modules=["mlp.fc1"]))
    assert count(handle) == 2 * (2 * 48 + 2 * 192)
    assert isinstance(model.blocks[0].attn.qkv, nn.Linear)
    handle.detach()
    with pytest.raises(FreqFormerError, match="which has them all"):
        adapters.attach(model, LoraConfig(r=2), r=3)


def test_a_target_that_would_not_act_is_refused(small, images):
    # EVA-02 and BEiT multiply by the weight of the fused projection without calling it.
    for name in ("beit_base_patch16_224", "eva02_tiny_patch14_224"):
        model = small(name, img_size=(112, 112))
        keys = list(model.state_dict())
        with pytest.raises(FreqFormerError, match=r"never calls blocks\.0\.attn\.qkv"):
            adapters.attach(model, "lora", target_modules=["qkv"])
        assert list(model.state_dict()) == keys
        assert not hasattr(model, "peft_config")
    model = small()
    x = images(model)
    with torch.no_grad():
        y = model(x)
        handle = adapters.attach(model, "lora", target_modules=["qkv"], init_lora_weights=False)
        assert count(handle) == 2 * 8 * (48 + 3 * 48)
        assert not torch.equal(model(x), y)


def test_layers_to_transform_are_blocks(small):
    handle = adapters.attach(small(), "lora", layers_to_transform=[1])
    assert len(handle.named()) == 2 * 6
    assert all("blocks.1." in name for name in handle.named())


def test_loras_six_maps(small):
    handle = adapters.attach(small(), "lora", r=4)
    layers = {name.partition("blocks.0.")[2].partition(".lora")[0] for name in handle.named() if "blocks.0." in name}
    assert layers == {"attn.qkv.query", "attn.qkv.key", "attn.qkv.value", "attn.proj", "mlp.fc1", "mlp.fc2"}


def test_dropout_of_an_adapter_works_in_training_alone(small, images):
    for name, options in (("lora", {"lora_dropout": 0.5}), ("vpt_deep", {"prompt_dropout": 0.5})):
        model = small()
        handle = adapters.attach(model, name, **options)
        with torch.no_grad():
            for parameter in handle.parameters():
                parameter.add_(0.3)
            x = images(model)
            assert torch.equal(model(x), model(x))
            adapters.set_mode(model, True)
            assert not torch.equal(model(x), model(x))
            adapters.set_mode(model, False)
            assert torch.equal(model(x), model(x))


def test_every_method_begins_where_its_paper_says(small, images):
    """The low-rank branches, bottlenecks and tuned parts change nothing at first."""
    for name in ("linear", "bias", "adapter", "lora", "full"):
        model = small()
        x = images(model)
        with torch.no_grad():
            y = model(x)
            adapters.attach(model, name)
            # Query, key and value apart are other matrix products: rounding of float64.
            assert torch.allclose(model(x), y, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_learning_lowers_the_loss(small, images, name):
    torch.manual_seed(0)
    model = small(dtype=torch.float32, global_pool="avg")
    handle = adapters.attach(model, name)
    adapters.set_mode(model, True)
    x, target = images(model), torch.tensor([1, 3])
    optimizer = torch.optim.Adam(handle.parameters(), lr=1e-3)
    start = [parameter.detach().clone() for parameter in handle.parameters()]
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    unmoved = [n for (n, p), was in zip(handle.named().items(), start, strict=True) if torch.equal(p, was)]
    assert not [name for name in unmoved if "key" not in name]


@dataclass
class GateOptions:
    """Options of the test's own method."""

    start: float = 0.0
    """Where the gate begins."""


def test_a_method_of_ones_own(small, images, tmp_path):
    try:

        @method("gate", "my-gate")
        class Gate(Handle):
            """A gain of all tokens before every block."""

            Options = GateOptions

            def build(self):
                self.keep(nn.ParameterList([nn.Parameter(torch.full((1,), self.options.start))]))

            def named(self):
                return dict(self.module.named_parameters())

            def unbuild(self):
                pass

            def at(self, place, x, tokens):
                return x * (1 + self.module[0].to(x.dtype))

        model = small()
        x = images(model)
        with torch.no_grad():
            y = model(x)
            handle = adapters.attach(model, "my-gate", start=0.5)
            gated = model(x)
            assert not torch.allclose(gated, y)
            with pytest.raises(FreqFormerError, match="cannot be folded"):
                handle.fold()
            handle.save(tmp_path)
            handle.detach()
            assert torch.equal(model(x), y)
            assert adapters.load(model, tmp_path).name == "gate"
            assert torch.equal(model(x), gated)
    finally:
        METHODS.pop("gate", None)
        ALIASES.pop("my-gate", None)


def test_handles_say_what_is_over(small):
    model = small()
    handle = adapters.attach(model, "filter2d")
    with pytest.raises(FreqFormerError, match="on this model already: detach it first"):
        adapters.attach(model, "filter2d")
    handle.fold()
    with pytest.raises(FreqFormerError, match="folded already: make the model again"):
        adapters.attach(model, "filter2d")
    for action in (handle.fold, handle.detach, handle.state_dict):
        with pytest.raises(FreqFormerError, match="was folded or detached"):
            action()
    gone = adapters.attach(model, "lora")
    gone.detach()
    with pytest.raises(FreqFormerError, match="was folded or detached"):
        gone.detach()
