"""Every method on many networks: it acts, learns and leaves, or says why it cannot be there."""

import re

import pytest
import timm
import torch

from freqformer import adapters
from freqformer.adapters.backbone import blank_image
from freqformer.errors import FreqFormerError

METHODS = {
    **{
        name: {}
        for name in ("filter2d", "filter2d_real", "filter1d", "ssf", "linear", "bias", "adapter", "rlrr", "full")
    },
    "vpt_shallow": {"num_tokens": 3},
    "vpt_deep": {"num_tokens": 3},
    "lora": {},
}
# Prompts have no place beside a bias for each pair of tokens, or on a grid.
PAIRS = {method: "a bias per pair of tokens" for method in ("vpt_shallow", "vpt_deep")}
ON_GRID = {method: "its tokens lie on a grid" for method in ("vpt_shallow", "vpt_deep")}
NO_MLP = {"adapter": "without a feed-forward `mlp`"}
VIT = "vit_base_patch16_224"
QUICK = {
    "vit": (VIT, {}, {}),
    "rectangular": (VIT, {"img_size": (64, 96), "global_pool": "avg", "class_token": False}, {}),
    "eva02": ("eva02_base_patch14_224", {"img_size": 56}, {}),
    "dinov3": ("vit_small_patch16_dinov3", {}, {}),
    "beit": ("beit_base_patch16_224", {}, PAIRS),
    "gfnet": ("test_gfnet", {}, ON_GRID),
}
MORE = {
    "distilled": ("deit_base_distilled_patch16_224", {}, {}),
    "clip": ("vit_base_patch16_clip_224", {}, {}),
    "registers": (VIT, {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.5}, {}),
    "spectformer": ("test_spectformer", {}, ON_GRID),
    "test_vit": ("test_vit", {}, {}),
    "map": (VIT, {"global_pool": "map"}, {}),
    "qk norm": (VIT, {"qk_norm": True, "qkv_bias": False}, {}),
    "one channel": (VIT, {"in_chans": 1}, {}),
    "deit3": ("deit3_base_patch16_224", {}, {}),
    "siglip": ("vit_base_patch16_siglip_224", {}, {}),
    "eva": ("eva_large_patch14_196", {"img_size": 56}, {}),
    "eva02 fused": ("eva02_tiny_patch14_224", {"img_size": 56}, {}),
    "rope mixed": ("vit_base_patch16_rope_mixed_224", {}, {}),
    "perception encoder": ("vit_pe_spatial_tiny_patch16_512", {}, {}),
    "dinov2 registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}, {}),
    "dinov2 giant": ("vit_giant_patch14_dinov2", {"img_size": 56}, {}),
    "beitv2": ("beitv2_base_patch16_224", {}, PAIRS),
    "relative positions": ("vit_relpos_base_patch16_224", {}, PAIRS),
    "shared relative positions": ("vit_srelpos_small_patch16_224", {}, PAIRS),
    "sam": ("samvit_base_patch16_224", {}, ON_GRID),
    "flexivit": ("flexivit_small", {}, {}),
    "cait": ("cait_xxs24_224", {}, {}),
    "parallel": ("vit_base_patch16_xp_224", {}, NO_MLP),
    "parallel things": ("vit_small_patch16_18x2_224", {}, NO_MLP),
    "differential": (VIT, {"attn_layer": "diff"}, {}),
    "hybrid": ("vit_tiny_r_s16_p8_224", {}, {}),
    "aimv2": ("aimv2_large_patch14_224", {"img_size": 56}, {}),
}
CASES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
# Softmax does not see what is added to every logit of a row; of biases of norms and gates there are none such.
UNSEEN = re.compile(r"(key|k|k_norm|proj_l|rel_pos\.mlp\.fc2)\.(bias|shift)$")


def picture(model):
    """All that can be seen of a model."""
    return (
        list(model.state_dict()),
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {name: module.training for name, module in model.named_modules()},
        {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()},
    )


def unseen(model, handle, name):
    """Whether a network cannot depend on a parameter: what comes to patches last, where they are not looked at."""
    pooled = getattr(model, "global_pool", "")
    last = name.startswith(f"{handle.backbone.depth}.") and handle.name.startswith("filter")
    return bool(UNSEEN.search(name)) or (last and pooled == "token")


@pytest.mark.parametrize("case", CASES)
def test_methods_act_learn_and_leave(small, images, move, case):
    name, options, refused = {**QUICK, **MORE}[case]
    for method, chosen in METHODS.items():
        model = small(name, **options)
        x, before, values = images(model), picture(model), {k: v.clone() for k, v in model.state_dict().items()}
        with torch.no_grad():
            y = model(x)
        if method in refused:
            with pytest.raises(FreqFormerError, match=refused[method]):
                adapters.attach(model, method, **chosen)
            assert picture(model) == before
            continue
        handle = move(adapters.attach(model, method, **chosen))
        moved = model(x)
        assert float((moved.detach() - y).abs().max()) > 1e-9, method
        (moved * torch.randn(moved.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
        own = handle.named()
        most = max(float(parameter.grad.abs().max()) for parameter in own.values())
        for key, parameter in own.items():
            if not unseen(model, handle, key):
                assert float(parameter.grad.abs().max()) > 1e-12 * most, (method, key)
        trained = {id(parameter) for parameter in own.values()}
        for parameter in model.parameters():
            assert parameter.requires_grad == (id(parameter) in trained), method
            assert parameter.requires_grad or parameter.grad is None, method
        if method == "full":
            continue
        handle.detach()
        assert picture(model) == before, method
        assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items()), method
        with torch.no_grad():
            assert torch.equal(model(x), y), method


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepseek_vit_412m", "qwen3_vit_88m"])
@pytest.mark.parametrize("method", ["filter2d", "ssf", "lora", "vpt_shallow"])
def test_an_encoder_within_a_model_is_found(images, move, name, method):
    model = timm.create_model(name, embed_dim=48, depth=2, num_heads=4, num_classes=5).eval()
    x = images(model)
    with torch.no_grad():
        y = model(x)
        handle = move(adapters.attach(model, method))
        assert handle.backbone.path == "encoder.blocks"
        assert not torch.equal(model(x), y)
        handle.detach()
        assert torch.equal(model(x), y)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma4_vit_167m", "qwen3_vit_88m"])
def test_an_encoder_within_a_model_has_the_grid_of_its_image(name):
    model = timm.create_model(name, embed_dim=48, depth=1, num_heads=4, num_classes=5).eval()
    handle = adapters.attach(model, "filter2d")
    for height, width in ((192, 384), (384, 192)):
        assert model(torch.randn(1, 3, height, width)).shape == (1, 5)
        assert handle.adapters.grid == (height // 16, width // 16)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("test_convnext", "a pyramid of 4 stages"),
        ("test_efficientnet", "its tokens change shape between the blocks"),
        ("test_resnet", "no module `blocks`"),
        ("test_dfformer", "a pyramid of 4 stages"),
    ],
)
def test_other_networks_are_refused_and_left_alone(name, why):
    model = timm.create_model(name, num_classes=5).eval()
    before = picture(model)
    with pytest.raises(FreqFormerError, match=why) as caught:
        adapters.attach(model, "filter2d")
    assert "\n" not in str(caught.value)
    assert picture(model) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        (
            "convit_tiny",
            {"embed_dim": 48, "depth": 3, "num_heads": 4, "img_size": 64, "local_up_to_layer": 1},
            "change shape between the blocks",
        ),
        ("tnt_s_patch16_224", {"embed_dim": 48, "depth": 2, "img_size": 64}, "do not pass on one tensor"),
        ("crossvit_tiny_240", {}, "do not pass on one tensor"),
        ("hiera_tiny_224", {}, "change shape between the blocks"),
        ("swin_tiny_patch4_window7_224", {}, "4 sequences of blocks"),
        ("xcit_nano_12_p16_224", {"embed_dim": 48, "depth": 2, "num_heads": 4}, "does not run with vpt_deep"),
    ],
)
def test_large_networks_are_refused_with_the_reason(name, options, why):
    model = timm.create_model(name, **options).eval()
    before = picture(model)
    with pytest.raises(FreqFormerError, match=why):
        adapters.attach(model, "vpt_deep")
    assert picture(model) == before


@pytest.mark.parametrize(
    "method", ["filter2d", "filter2d_real", "filter1d", "ssf", "vpt_deep", "adapter", "lora", "bias"]
)
def test_any_image_size(small, images, move, method):
    model = small(dynamic_img_size=True, reg_tokens=1)
    handle = move(adapters.attach(model, method))
    for size in ((64, 64), (96, 48), (48, 96), (32, 80)):
        y = model(images(model, size))
        assert y.shape == (2, 5)
        assert torch.isfinite(y).all()
        y.sum().backward()
        assert all(parameter.grad is not None for parameter in handle.parameters())


def test_a_filter_knows_height_from_width(small, images, move):
    # Two grids of as many tokens, 6 x 3 and 3 x 6: a transposed image through a transposed grid.
    model = small(dynamic_img_size=True, global_pool="avg", class_token=False)
    handle = move(adapters.attach(model, "filter2d"), by=0.5)
    seen = []
    handle.places()[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1:3]))
    for size in ((96, 48), (48, 96)):
        model(images(model, size))
    assert seen == [(6, 3), (3, 6)]


def test_dropped_patches_are_an_error_and_not_another_filter(small, images):
    model = small(patch_drop_rate=0.5)
    adapters.attach(model, "filter1d")
    adapters.set_mode(model, True)
    assert torch.isfinite(model(images(model))).all()
    model.train()
    with pytest.raises(FreqFormerError, match="every patch"):
        model(images(model))


@pytest.mark.slow
def test_naflexvits_own_batches_are_an_error_and_images_are_not(move):
    model = timm.create_model("naflexvit_base_patch16_gap", embed_dim=48, depth=2, num_heads=4, num_classes=5).eval()
    move(adapters.attach(model, "filter2d"))
    assert model(torch.randn(1, 3, 96, 192)).shape == (1, 5)
    patches = {
        "patches": torch.randn(1, 12, 768),
        "patch_coord": torch.stack(torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij"), -1).view(1, 12, 2),
        "patch_valid": torch.ones(1, 12, dtype=torch.bool),
    }
    with pytest.raises(FreqFormerError, match="images of one size"):
        model(patches)


def test_rotary_positions_stay_with_their_patches(small, images):
    """Prompts before the patches must not take their places: attention to them alone changes with prompts."""
    model = small("vit_small_patch16_dinov3")
    x, seen = images(model), []
    block = model.blocks[0]
    hook = block.attn.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    handle = adapters.attach(model, "vpt_shallow", num_tokens=3)
    model(x)
    hook.remove()
    tokens, output = seen[-1]
    prefix = handle.backbone.prefix
    rope = model.rope.get_embed(shape=handle.backbone.grid)
    q, k, v = block.attn.qkv(tokens).view(2, tokens.shape[1], 3, 4, -1).permute(2, 0, 3, 1, 4)
    from timm.layers import apply_rot_embed_cat

    half = getattr(block.attn, "rotate_half", False)
    turned = [
        torch.cat((t[:, :, : prefix + 3], apply_rot_embed_cat(t[:, :, prefix + 3 :], rope, half=half)), dim=2)
        for t in (block.attn.q_norm(q), block.attn.k_norm(k))
    ]
    attended = torch.nn.functional.scaled_dot_product_attention(*turned, v).transpose(1, 2).flatten(2)
    assert torch.allclose(block.attn.proj(block.attn.norm(attended)), output, atol=1e-10)


def test_blank_images_fit_the_network(small):
    for options in ({"img_size": (64, 96)}, {"in_chans": 1}, {"num_classes": 0}):
        model = small(**options)
        assert model(blank_image(model)).ndim == 2
