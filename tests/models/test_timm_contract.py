"""What timm's users expect of a model, for every registered one that is small enough, and all on the meta device."""

import copy
import pickle
import subprocess
import sys

import pytest
import timm
import torch
from timm.models import create_feature_extractor
from timm.optim import create_optimizer_v2, param_groups_layer_decay

import freqformer
from freqformer import FreqFormerError
from freqformer.models import model_names

EVERY = model_names()
TINY = [name for name in EVERY if name.startswith("test_")]
# One of each family of parts is enough where something is compiled.
FAMILIES = ["test_gfnet", "test_freqformer", "test_gfnet_h", "test_spectformer_h", "test_cdfformer", "test_afno"]


def make(name, **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, **arguments)


def on_meta(name, **arguments):
    with torch.device("meta"):
        return timm.create_model(name, **arguments)


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", EVERY)
def test_it_can_be_made_and_run_without_memory(name):
    model = on_meta(name).eval()
    size = model.pretrained_cfg["input_size"]
    y = model(torch.empty(2, *size, device="meta"))
    assert y.shape == (2, model.num_classes) == (2, model.pretrained_cfg["num_classes"])
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", EVERY)
def test_pretrained_cfg_names_real_modules(name):
    model = on_meta(name)
    cfg, modules = model.pretrained_cfg, dict(model.named_modules())
    classifiers = cfg["classifier"] if isinstance(cfg["classifier"], tuple) else (cfg["classifier"],)
    for classifier in classifiers:
        assert modules[classifier].out_features == model.num_classes
    assert modules[cfg["first_conv"]].in_channels == 3
    assert cfg["architecture"] == name
    assert {"mean", "std", "crop_pct", "interpolation", "input_size", "num_classes"} <= cfg.keys()


@pytest.mark.parametrize("name", EVERY)
def test_the_classifier_can_be_left_out_or_replaced(name):
    model = on_meta(name, num_classes=0)
    x = torch.empty(2, *model.pretrained_cfg["input_size"], device="meta")
    features = model.eval()(x)
    assert features.shape == (2, model.num_features) == (2, model.head_hidden_size)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    assert model.get_classifier() is not None
    grid = model.forward_features(x)
    assert grid.ndim == 4
    assert model.forward_head(grid).shape == (2, 7)
    assert model.forward_head(grid, pre_logits=True).shape == (2, model.num_features)


@pytest.mark.parametrize("name", EVERY)
def test_features_have_the_described_shapes(name):
    model = on_meta(name, features_only=True).eval()
    channels, height, width = model.pretrained_cfg["input_size"]
    features = model(torch.empty(2, channels, height, width, device="meta"))
    reductions, dims = model.feature_info.reduction(), model.feature_info.channels()
    assert [f.shape for f in features] == [
        (2, dim, height // reduction, width // reduction) for dim, reduction in zip(dims, reductions, strict=True)
    ]
    isotropic = len(set(reductions)) == 1
    assert isotropic or reductions == [4, 8, 16, 32]
    modules = dict(on_meta(name).named_modules())
    assert all(module in modules for module in model.feature_info.module_name())


@pytest.mark.parametrize("name", EVERY)
def test_without_pooling_it_returns_a_grid(name):
    model = on_meta(name, num_classes=0, global_pool="").eval()
    assert model.output_fmt == "NHWC"
    height, width = model.pretrained_cfg["pool_size"]
    x = torch.empty(2, *model.pretrained_cfg["input_size"], device="meta")
    assert model(x).shape == (2, height, width, model.num_features)
    model.reset_classifier(5, "avg")
    assert model(x).shape == (2, 5)
    model.reset_classifier(5, "")
    assert model(x).shape == (2, height, width, 5)


@pytest.mark.parametrize("name", ["test_gfnet", "test_gfnet_h", "test_spectformer_h", "test_dfformer", "test_afno"])
@pytest.mark.parametrize("size", [32, 40])
def test_it_can_be_traced_symbolically(name, size):
    """As timm's FX feature extractors do; mixers are leaves."""
    tracer = create_feature_extractor(make(name).eval(), ["stages"])
    model = make(name).eval()
    x = images(1, 3, size, size)
    with torch.no_grad():
        expected = model.forward_intermediates(x, intermediates_only=True, output_fmt="NHWC")[-1]
        torch.testing.assert_close(tracer(x)["stages"], expected)


@pytest.mark.parametrize("name", TINY)
def test_intermediates_are_those_on_the_way(name):
    model = make(name).eval()
    x = images(2, 3, 40, 32)
    with torch.no_grad():
        last, every = model.forward_intermediates(x)
        torch.testing.assert_close(last, model.forward_features(x))
        torch.testing.assert_close(model.forward_head(last), model(x))
        some = model.forward_intermediates(x, indices=[0, -1], intermediates_only=True, output_fmt="NHWC")
        assert len(some) == 2
        torch.testing.assert_close(some[0].permute(0, 3, 1, 2), every[0])
        torch.testing.assert_close(some[1].permute(0, 3, 1, 2), every[-1])
        early = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(early[0], every[0])
        normed = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        torch.testing.assert_close(normed[0], model.norm(every[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    with pytest.raises(ValueError, match="output_fmt"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", TINY)
def test_a_pruned_extractor_gives_the_same_features_and_takes_whole_files(name):
    whole = make(name).eval()
    extractor = make(name, features_only=True, out_indices=(0, 1)).eval()
    report = freqformer.load_checkpoint(extractor, whole.state_dict())
    assert len(report.unexpected) > 0
    assert not set(report.unexpected) & {key.removeprefix("model.") for key in extractor.state_dict()}
    x = images(1, 3, 32, 32)
    expected = whole.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    for ours, theirs in zip(extractor(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", EVERY)
def test_parameters_are_grouped_for_the_optimiser(name):
    model = on_meta(name)
    spared = {
        id(p)
        for group in create_optimizer_v2(model, weight_decay=0.1).param_groups
        if group["weight_decay"] == 0
        for p in group["params"]
    }
    for key, parameter in model.named_parameters():
        assert (id(parameter) in spared) == (parameter.ndim <= 1 or key == "pos_embed"), key
    matcher = model.group_matcher()
    groups = timm.models.group_parameters(model, matcher)
    assert {key for keys in groups.values() for key in keys} == dict(model.named_parameters()).keys()
    scales = {}
    for group in param_groups_layer_decay(model, layer_decay=0.5):
        scales |= {id(p): group["lr_scale"] for p in group["params"]}
    named = dict(model.named_parameters())
    blocks = [scales[id(named[key])] for key in named if key.endswith("norm2.weight") and "stages" in key]
    assert blocks == sorted(blocks)
    assert scales[id(named["stem.proj.weight" if "stem.proj.weight" in named else "stem.conv.0.weight"])] < blocks[0]
    assert max(scales.values()) == 1


@pytest.mark.parametrize("name", TINY)
def test_checkpointing_changes_no_gradient(name):
    gradients = []
    for enable in (False, True):
        model = make(name).train()
        model.set_grad_checkpointing(enable)
        model(images(2, 3, 32, 32)).square().sum().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["test_freqformer", "test_spectformer_h", "test_dfformer"])
def test_checkpointing_keeps_fewer_activations(name):
    kept = []
    for enable in (False, True):
        model = make(name).train()
        model.set_grad_checkpointing(enable)
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(images(8, 3, 64, 64)).sum()
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept.append(sum(size for pointer, size in sizes.items() if pointer not in own))
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.parametrize("name", TINY)
def test_dropping_paths_acts_in_training_only(name):
    plain, dropping = make(name).eval(), make(name, drop_path_rate=0.9).eval()
    dropping.load_state_dict(plain.state_dict())
    x = images(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(dropping(x), plain(x))
        assert len({dropping.train()(x).sum().item() for _ in range(8)}) > 1


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_makes_no_nan(name, dtype):
    model = make(name)
    with torch.autocast("cpu", dtype):
        y = model(images(2, 3, 32, 32))
    y.float().square().mean().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", TINY)
def test_copies_and_pickles_are_equal(name):
    model = make(name).eval()
    x = images(1, 3, 40, 48)
    with torch.no_grad():
        y = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x), y)
            other.reset_classifier(3)
            assert other(x).shape == (1, 3)


@pytest.mark.parametrize("in_chans", [1, 3, 4, 13])
@pytest.mark.parametrize("name", TINY)
def test_any_number_of_image_channels(name, in_chans):
    assert make(name, in_chans=in_chans).eval()(images(1, in_chans, 32, 32)).shape == (1, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(32, 32), (40, 56)])
def test_compiled_in_one_graph_it_is_equal(name, size):
    model = make(name).eval()
    x = images(2, 3, *size)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_freqformer", "test_dfformer"])
def test_torchs_own_compiler_takes_it(name):
    model = make(name).eval()
    x = images(2, 3, 40, 56)
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gfnet_ti", "spectformer_ti", "gfnet_h_ti", "freqformer_h_s", "cdfformer_s18"])
def test_one_variant_of_each_family_compiles_and_exports(name):
    model = make(name).eval()
    x = images(1, 3, 224, 224)
    torch.compiler.reset()
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(32, 32), (40, 56), (24, 37)])
def test_exported_it_is_equal(name, size):
    model = make(name).eval()
    x = images(2, 3, *size)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("fft" in target or "complex" in target for target in targets)
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert not [v for v in values if isinstance(v, torch.Tensor) and v.is_complex()]


def test_weights_without_a_published_link_are_named_with_the_way_out():
    for create in (timm.create_model, freqformer.create_model):
        with pytest.raises(FreqFormerError, match=r"spectformer_ti.*https://.*checkpoint=FILE") as caught:
            create("spectformer_ti", pretrained=True)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("resample", ["stretch", "crop-pad"])
def test_exported_for_another_size_in_a_fresh_process(resample):
    """Nothing that an export makes by the way may be left in a cache, and nothing cached may be needed."""
    code = (
        "import torch, freqformer\n"
        f"model = freqformer.create_model('test_spectformer_h', resample={resample!r}).eval()\n"
        "x = torch.randn(1, 3, 56, 40)\n"
        "program = torch.export.export(model, (x,))\n"
        "torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
