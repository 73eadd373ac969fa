import numpy as np
import pytest
import timm
import torch
from torch import nn

import freqformer.models  # noqa: F401  (registers the models)
from freqformer.errors import FreqFormerError
from freqformer.factory import create_model
from freqformer.layers import Attention
from freqformer.visualize import attention
from freqformer.visualize.attention import measure_attention, softmax_chunks


def vit(**arguments):
    torch.manual_seed(0)
    given = {"img_size": 64, "depth": 2, "num_classes": 3, **arguments}
    model = timm.create_model("vit_tiny_patch16_224", **given).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 64, 64)}
    return model


@pytest.mark.parametrize("most", [2**24, 100])
def test_the_softmax_of_some_queries_at_a_time_is_the_attention(monkeypatch, most):
    import sys

    monkeypatch.setattr(sys.modules["freqformer.visualize.attention"], "_SCORES", most)
    q, k, v = torch.randn(3, 2, 40, 8)
    parts = list(softmax_chunks(q, k, 8**-0.5))
    again = torch.cat([weights @ v for _, weights in parts], dim=1)
    torch.testing.assert_close(again, nn.functional.scaled_dot_product_attention(q, k, v))
    assert len(parts) == (1 if most > 10**6 else 40)


def test_equal_keys_are_looked_at_equally(photo):
    model = create_model("test_freqformer").eval()
    for module in model.modules():
        if isinstance(module, Attention):
            nn.init.zeros_(module.qkv.weight)
    _, maps = measure_attention(model, photo())
    assert maps
    for one in maps:
        np.testing.assert_allclose(one.overall, 1 / one.overall.size, rtol=1e-5)
        np.testing.assert_allclose(one.query, 1 / one.query.size, rtol=1e-5)
        assert one.spread == pytest.approx(1)


@pytest.mark.parametrize("place", [(0, 0), (0.6, 0.3), (1, 1)])
def test_attention_of_a_place_to_itself_is_seen_there(photo, place):
    """Queries and keys that name their own position look at themselves alone."""
    model = create_model("test_freqformer").eval()
    module = next(m for m in model.modules() if isinstance(m, Attention))
    height, width = 4, 4
    size = module.qkv.in_features // module.num_heads
    own = torch.randn(height * width, size, generator=torch.Generator().manual_seed(0))
    own = 30 * own / own.norm(dim=1, keepdim=True)

    def known(_, args, output):
        heads = own.repeat(1, module.num_heads).reshape(1, height, width, -1)
        return torch.cat((heads, heads, heads), dim=-1)

    module.qkv.register_forward_hook(known)
    _, maps = measure_attention(model, photo(), query=place)
    row, column = (min(int(share * 4), 3) for share in place)
    assert maps[0].query[row, column] > 0.99
    np.testing.assert_allclose(maps[0].overall, 1 / 16, atol=1e-3)


@pytest.mark.parametrize(
    "arguments", [{}, {"qk_norm": True}, {"reg_tokens": 3}, {"class_token": False, "global_pool": "avg"}]
)
def test_a_timm_model_is_recomputed_as_it_attends_itself(photo, arguments):
    model = vit(**arguments)
    module = model.blocks[1].attn
    module.fused_attn = False
    seen = []
    module.attn_drop.register_forward_hook(lambda _, args, output: seen.append(output[0].mean(dim=0)))
    _, maps = measure_attention(model, photo(64, 64), query=(0, 0.5))
    has_class = arguments.get("class_token", True)
    prefix = seen[0].shape[0] - 16
    overall = seen[0][0] if has_class else seen[0].mean(dim=0)
    assert maps[1].by_class is has_class
    np.testing.assert_allclose(maps[1].overall.ravel(), overall[prefix:].numpy(), rtol=1e-4)
    np.testing.assert_allclose(maps[1].query.ravel(), seen[0][prefix + 2, prefix:].numpy(), rtol=1e-4)


def test_a_class_block_is_drawn_on_the_grid_it_pools(photo):
    model = create_model("test_spectformer_h", img_size=(96, 128)).eval()
    _, maps = measure_attention(model, photo(96, 128))
    assert maps[-1].name == "pool.attn"
    assert maps[-1].by_class
    assert maps[-1].query is None
    assert maps[-1].grid == model.grids((96, 128))[-1] == (3, 4)
    figure = attention(model, photo(96, 128))
    titles = [axes.get_title() for axes in figure.axes]
    assert any(title.startswith("pool\nclass token") for title in titles)
    assert any(title.startswith("stage 4, block 0") for title in titles)


def test_one_grid_has_blocks_without_stages(photo):
    titles = [axes.get_title() for axes in attention(create_model("test_freqformer"), photo()).axes]
    assert any(title.startswith("block ") for title in titles)


def test_the_picture_is_the_image_as_the_network_took_it(photo):
    image = photo()
    picture, _ = measure_attention(create_model("test_freqformer").eval(), image)
    np.testing.assert_allclose(picture, np.asarray(image) / 255, atol=1e-6)


def test_an_adapted_model_is_drawn_with_its_adapters(photo):
    from freqformer.adapters import attach

    model = vit()
    before = measure_attention(model, photo(64, 64))[1]
    attach(model, "vpt_deep", num_tokens=3)
    after = measure_attention(model.eval(), photo(64, 64))[1]
    assert [one.grid for one in after] == [(4, 4)] * 2
    # Attention to prompts is missing on the patches.
    assert after[1].overall.sum() < before[1].overall.sum()


def test_attention_that_is_more_than_queries_and_keys_is_refused(photo):
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=2, depths=(1, 1, 1, 1)).eval()
    with pytest.raises(FreqFormerError, match="more than a softmax"):
        attention(swin, photo())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beit_base_patch16_224", "more than a softmax"),
        ("eva02_tiny_patch14_224", "more than a softmax"),
        ("vit_base_patch16_rope_224", "more than a softmax"),
        # Its queries, keys and values have a projection each.
        ("eva02_base_patch14_224", "of no kind that is known"),
    ],
)
def test_attention_with_positions_is_refused_in_a_line(photo, name, message):
    small = {"img_size": 56, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 2}
    model = timm.create_model(name, **small).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 56, 56)}
    with pytest.raises(FreqFormerError, match=message) as refusal:
        attention(model, photo(56, 56))
    assert "\n" not in str(refusal.value)


def test_models_without_attention_say_what_they_have(photo):
    with pytest.raises(FreqFormerError, match="no attention to draw: its blocks are spectral"):
        attention(create_model("test_gfnet"), photo())


def test_a_place_outside_the_image(photo):
    with pytest.raises(FreqFormerError, match="two shares"):
        attention(create_model("test_freqformer"), photo(), query=(0.5, 1.5))
