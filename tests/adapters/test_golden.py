"""FreqFit is the official code's: values of its modules and of whole networks, parameter counts, checkpoints."""

import pytest
import timm
import torch

from freqformer import adapters
from freqformer.adapters.backbone import Tokens
from freqformer.errors import FreqFormerError

# Each module of upstream, our method, and the grids of tokens on which its values were taken.
MODULES = (
    ("global_filter_1d_h14", "filter1d", {26: (2, 13), 27: (3, 9)}),
    ("global_filter_1d_h99", "filter1d", {196: (14, 14)}),
    ("global_filter_2d", "filter2d", {196: (14, 14)}),
    ("global_filter_2d_rect", "filter2d", {60: (6, 10), 66: (6, 11)}),
    ("filter2d_params", "filter2d_real", {196: (14, 14)}),
)
VARIANTS = {
    "GlobalFilter (1-D, h=99)": "filter1d",
    "GlobalFilter2D (h=14, w=8)": "filter2d",
    "Filter2DParams (h=14, w=8)": "filter2d_real",
    "ssf (scale and shift only)": "ssf",
}


def host(grid, dtype, depth=2, dim=8):
    """A network whose tokens have that grid and as many places as the golden modules have blocks."""
    size = tuple(16 * side for side in grid)
    model = timm.create_model("vit_tiny_patch16_224", depth=depth, embed_dim=dim, num_heads=2, img_size=size)
    return model.to(dtype).eval()


def check(y, call, dtype):
    suffix = "_float64" if dtype == torch.float64 else ""
    bound = 1e-9 if suffix else max(1e-6, 10 * call["max_abs_diff_float32_float64"])
    flat = y.detach().flatten().double()
    for ours, theirs in (
        (flat[:128], call[f"first128{suffix}"]),
        (flat[:: call["stride"]][:128], call[f"strided128{suffix}"]),
    ):
        assert float((ours - torch.tensor(theirs, dtype=torch.float64)).abs().max()) <= bound
    assert float(flat.norm()) == pytest.approx(call[f"l2{suffix}"], rel=1e-6 if not suffix else 1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("case", "method", "grids"), MODULES)
@pytest.mark.parametrize("fold", [False, True], ids=["", "folded"])
def test_modules_have_the_official_values(golden, golden_state, golden_input, case, method, grids, dtype, fold):
    data = golden(f"freqfit/{case}")
    for call in data["calls"]:
        _, count, dim = call["input_shape"]
        handle = adapters.attach(host(grids[count], dtype, dim=dim), method)
        handle.load_state_dict(golden_state(data["state_dict"]))
        if fold:
            handle.fold()
        x = golden_input(call["input_shape"]).to(dtype)
        check(handle.at(call["block"], x, Tokens(grids[count], 0, 0)), call, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ssf_has_the_official_values(golden, golden_state, golden_input, dtype):
    data = golden("freqfit/ssf_ada")
    state = {key: value.expand(3, -1) for key, value in golden_state(data["state_dict"]).items()}
    for call in data["calls"]:
        if "last axis" not in call["branch"]:
            continue  # channels come last here
        handle = adapters.attach(host((2, 2), dtype), "ssf")
        handle.load_state_dict(state)
        check(handle.at(0, golden_input(call["input_shape"]).to(dtype), Tokens((2, 2), 0, 0)), call, dtype)


@pytest.mark.slow
def test_parameter_counts_are_upstreams(golden):
    counts = golden("freqfit/param_counts")
    encoders = {"ViT-B/16": "vit_base_patch16_224", "ViT-L/16": "vit_large_patch16_224"}
    for row in counts["modules"]:
        if row["blocks"] == row["layers"]:
            continue  # FreqFit's modules alone, one too few of them
        with torch.device("meta"):
            model = timm.create_model(encoders[row["backbone"]], num_classes=0)
        handle = adapters.attach(model, VARIANTS[row["variant"]])
        assert sum(parameter.numel() for parameter in handle.parameters()) == row["total"]
        total = next(
            (
                whole["num_params"]
                for whole in counts["whole_backbones"]
                if whole["backbone"] == row["backbone"] and whole["adaptation_params"] == row["total"]
            ),
            None,
        )
        if total is not None:
            assert sum(parameter.numel() for parameter in model.parameters()) == total


def timms_names(state, depth=3):
    """Upstream's ViT in timm's names."""
    weights = {key.removeprefix("transformer."): value for key, value in state.items()}
    names = {"pos_embed": "embeddings.position_embeddings", "cls_token": "embeddings.cls_token"}
    for leaf in ("weight", "bias"):
        names[f"patch_embed.proj.{leaf}"] = f"embeddings.patch_embeddings.{leaf}"
        names[f"norm.{leaf}"] = f"encoder.encoder_norm.{leaf}"
        names[f"head.{leaf}"] = f"head.{leaf}"
        for i in range(depth):
            ours, theirs = f"blocks.{i}", f"encoder.layer.{i}"
            names[f"{ours}.norm1.{leaf}"] = f"{theirs}.attention_norm.{leaf}"
            names[f"{ours}.norm2.{leaf}"] = f"{theirs}.ffn_norm.{leaf}"
            names[f"{ours}.attn.proj.{leaf}"] = f"{theirs}.attn.out.{leaf}"
            names[f"{ours}.mlp.fc1.{leaf}"] = f"{theirs}.ffn.fc1.{leaf}"
            names[f"{ours}.mlp.fc2.{leaf}"] = f"{theirs}.ffn.fc2.{leaf}"
    mapped = {ours: weights[theirs] for ours, theirs in names.items()}
    for i in range(depth):
        for leaf in ("weight", "bias"):
            parts = [weights[f"encoder.layer.{i}.attn.{part}.{leaf}"] for part in ("query", "key", "value")]
            mapped[f"blocks.{i}.attn.qkv.{leaf}"] = torch.cat(parts)
    return mapped


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("case", "method"), [("none", None), ("freqfit", "filter2d"), ("ssf", "ssf")])
def test_networks_have_the_official_logits(golden, golden_state, golden_input, case, method, dtype):
    data = golden(f"freqfit/vit_h48_l3_a4.{case}")
    state = golden_state(data["state_dict"])
    model = timm.create_model("vit_base_patch16_224", embed_dim=48, depth=3, num_heads=4, num_classes=10)
    model.load_state_dict(timms_names(state))
    model = model.to(dtype).eval()
    x = golden_input(data["input_shape"]).to(dtype)
    bound = 1e-9 if dtype == torch.float64 else 10 * data["max_abs_diff_float32_float64"]
    wanted = torch.tensor(data["logits_float64"], dtype=torch.float64)
    handle = None
    if method is not None:
        handle = adapters.attach(model, method)
        handle.load_state_dict(state)
        assert sum(parameter.numel() for parameter in handle.parameters()) == data["num_adaptation_params"]
    with torch.no_grad():
        assert float((model(x).flatten() - wanted).abs().max()) <= bound
        if handle is not None:
            handle.fold()
            assert float((model(x).flatten() - wanted).abs().max()) <= bound


@pytest.mark.parametrize("prefix", ["", "filter_layer.", "enc.transformer.encoder.filter_layer.", "module.ssf."])
@pytest.mark.parametrize("method", ["filter2d", "filter2d_real", "filter1d", "ssf"])
def test_official_keys_are_found_whatever_comes_before_them(prefix, method):
    handle = adapters.attach(host((3, 4), torch.float32), method)
    own = {name: torch.randn(value.shape) for name, value in handle.state_dict().items()}
    leaves = {name.partition(".")[2] for name in own}
    stacked = {
        f"{prefix}{'ssf_' if leaf in ('scale', 'shift') else ''}{leaf}": torch.stack(
            [own[f"{i}.{leaf}"] for i in range(3)]
        )
        for leaf in leaves
    }
    others = {
        "enc.transformer.encoder.layer.0.attn.query.weight": torch.zeros(8, 8),
        "head.last_layer.bias": torch.zeros(5),
    }
    handle.load_state_dict({**stacked, **others})
    for name, value in handle.state_dict().items():
        assert torch.equal(value, own[name])
    with pytest.raises(FreqFormerError, match="2 places"):
        handle.load_state_dict({key: value[:2] for key, value in stacked.items()})
