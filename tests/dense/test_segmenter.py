"""Segmenters: every decoder on every kind of backbone, images of any size, windows, and that they learn."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch.encoders import encoders

from freqformer import FreqFormerError
from freqformer.dense import DECODERS, create_segmenter
from freqformer.dense.segmenter import _starts

BACKBONES = ["test_gfnet_h", "test_gfnet", "test_dfformer", "test_convnext", "test_vit"]
NAMES = ["ground", "red", "blue"]


def make(decoder="fpn", arch="test_gfnet_h", names=NAMES, **arguments):
    torch.manual_seed(0)
    return create_segmenter(arch, names, decoder=decoder, **{"pyramid_channels": 16, **arguments})


# For tests that change nothing of it.
@functools.cache
def shared(decoder="fpn", arch="test_gfnet_h"):
    return make(decoder, arch).eval()


def images(height, width, batch=1, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, height, width), generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("arch", BACKBONES)
def test_every_parameter_gets_a_gradient(decoder, arch):
    # Or else distributed training fails.
    model = make(decoder, arch)
    logits = model(images(61, 75, batch=2))
    assert logits.shape == (2, 3, 61, 75)
    logits.square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(DECODERS),
    st.sampled_from(BACKBONES),
    st.integers(1, 2),
    st.integers(1, 100),
    st.integers(1, 100),
)
@torch.no_grad()
def test_logits_have_the_images_size(decoder, arch, batch, height, width):
    logits = shared(decoder, arch)(images(height, width, batch))
    assert logits.shape == (batch, 3, height, width)
    assert logits.isfinite().all()


@torch.no_grad()
def test_bytes_are_fractions_of_255():
    x = images(40, 70)
    assert torch.equal(shared()(x), shared()(x.float() / 255))


@pytest.mark.parametrize(("arch", "mean", "std"), [("test_gfnet_h", 0.485, 0.229), ("test_vit", 0.5, 0.5)])
@torch.no_grad()
def test_images_are_normalised_as_the_backbone_wants_and_padded_below_and_right(arch, mean, std):
    seen = []
    model = make(arch=arch).eval()
    model.backbone.register_forward_hook(lambda module, given, features: seen.append(given[0]))
    model(torch.ones(1, 3, 33, 64))
    assert seen[0].shape == (1, 3, 64, 64)
    torch.testing.assert_close(seen[0][0, 0, :33], torch.full((33, 64), (1 - mean) / std))
    assert (seen[0][:, :, 33:] == 0).all()


@torch.no_grad()
def test_padding_shifts_no_pixel():
    # A convolution sees its surroundings alone: far from the borders, logits of a part are those of the whole.
    model = make(arch="test_convnext", decoder="unet").eval()
    whole = images(416, 416)
    logits, part = model(whole), model(whole[..., :390, :401])
    middle = (..., slice(150, 170), slice(150, 170))
    torch.testing.assert_close(part[middle], logits[middle], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(part[..., 151:171, 150:170], logits[middle], rtol=1e-3, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 30), st.integers(0, 30))
@torch.no_grad()
def test_a_window_that_holds_the_image_sees_it_whole(height, width, more, yet_more):
    image = images(height, width)
    model = shared()
    slid = model.sliding(image[0], (height + more, width + yet_more))
    assert torch.equal(slid, model(image)[0])


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 500), st.integers(1, 200), st.data())
def test_windows_cover_everything_and_stay_inside(length, window, data):
    window = min(window, length)
    starts = _starts(length, window, data.draw(st.integers(1, window)))
    covered = {pixel for start in starts for pixel in range(start, start + window)}
    assert covered == set(range(length))
    assert sorted(set(starts)) == starts


@settings(max_examples=25, deadline=None)
@given(st.integers(30, 90), st.integers(30, 90), st.integers(20, 60), st.integers(20, 60), st.data())
@torch.no_grad()
def test_sliding_is_the_mean_over_windows(height, width, window_height, window_width, data):
    model, image = shared(), images(height, width)[0]
    window = (window_height, window_width)
    stride = data.draw(st.none() | st.tuples(st.integers(15, window_height), st.integers(15, window_width)))
    slid = model.sliding(image, window, stride)
    assert slid.shape == (3, height, width)
    assert slid.isfinite().all()
    # The corner of the first window that no other reaches.
    reach = [
        step if size > side else size
        for step, size, side in zip(stride or [side * 2 // 3 for side in window], (height, width), window, strict=True)
    ]
    first = model(image[None, :, :window_height, :window_width])[0]
    corner = [
        min(r, max(1, size - side)) if size > side else size
        for r, size, side in zip(reach, (height, width), window, strict=True)
    ]
    torch.testing.assert_close(slid[:, : corner[0], : corner[1]], first[:, : corner[0], : corner[1]])


@pytest.mark.parametrize("stride", [(0, 16), (16, 0), (-1, 16), (33, 16), (16, 33)])
def test_strides_that_leave_gaps_are_refused(stride):
    with pytest.raises(FreqFormerError, match=r"windows of \(32, 32\) at strides of .* leave gaps"):
        shared().sliding(images(100, 100)[0], (32, 32), stride)


def test_sliding_makes_no_graph():
    assert not shared().sliding(images(40, 40)[0], (32, 32)).requires_grad


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"decoder": "linknet"}, f"there is no decoder 'linknet': choose one of {', '.join(DECODERS)}"),
        ({"decoder_args": {"nonsense": 3}}, "the decoder fpn has no keyword 'nonsense': it takes decoder_"),
        ({"decoder_args": {"encoder_depth": 3}}, "the decoder fpn has no keyword 'encoder_depth'"),
        ({"decoder_args": {"decoder_merge_policy": "product"}}, "cannot make the decoder fpn: .*product"),
        ({"arch": "nothing"}, "there is no backbone 'nothing'"),
    ],
)
def test_what_makes_no_segmenter_is_refused_in_one_line(arguments, what):
    before = dict(encoders)
    with pytest.raises(FreqFormerError, match=what) as refusal:
        make(**arguments)
    assert len(str(refusal.value).splitlines()) == 1
    assert dict(encoders) == before


def test_the_librarys_table_of_encoders_is_left_as_it_was():
    before = dict(encoders)
    make()
    assert dict(encoders) == before


def test_a_decoders_own_keywords():
    narrow, wide = (make(decoder_args={"decoder_pyramid_channels": c}) for c in (32, 64))
    count = [sum(p.numel() for p in model.net.decoder.parameters()) for model in (narrow, wide)]
    assert count[0] < count[1]
    assert narrow.arguments["decoder_args"] == {"decoder_pyramid_channels": 32}


@pytest.mark.parametrize("arch", ["test_gfnet_h", "test_gfnet", "test_vit"])
def test_gradient_checkpointing_changes_no_gradient(arch):
    model = make(arch=arch, decoder_args={"decoder_dropout": 0.0})
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images(64, 64, batch=2)).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("arch", ["test_gfnet_h", "test_vit"])
def test_weight_decay_spares_the_position_embedding(arch):
    model = make(arch=arch)
    spared = model.no_weight_decay() & dict(model.named_parameters()).keys()
    assert "net.encoder.body.network.model.pos_embed" in spared


@pytest.mark.parametrize("arch", ["test_gfnet_h", "test_gfnet"])
def test_backbones_start_from_weights(tmp_path, arch):
    from freqformer.checkpoints import save_weights

    first = make(arch=arch)
    save_weights(tmp_path / "model.safetensors", first.backbone.network.model.state_dict(), None)
    torch.manual_seed(9)
    second = create_segmenter(arch, NAMES, backbone_weights=tmp_path / "model.safetensors")
    ours, theirs = second.backbone.state_dict(), first.backbone.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def label_map(target):
    """Class of every pixel: 0, or 1 + the label of the object there."""
    return (target["masks"].long() * (1 + target["labels"])[:, None, None]).amax(0)


def mean_iou(model, x, y):
    model.eval()
    with torch.no_grad():
        found = model(x).argmax(1)
    model.train()
    return sum(((found == c) & (y == c)).sum() / ((found == c) | (y == c)).sum() for c in range(3)).item() / 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decoder", "arch"), [("fpn", "test_gfnet_h"), ("fpn", "test_gfnet"), ("unet", "test_dfformer")]
)
def test_it_learns_a_few_images_by_heart(make_scene, decoder, arch):
    scenes = [make_scene(seed, (90, 125)) for seed in range(3)]
    x, y = torch.stack([image for image, _ in scenes]), torch.stack([label_map(target) for _, target in scenes])
    model = make(decoder, arch, pyramid_channels=32)
    assert mean_iou(model, x, y) < 0.5
    steps, peak = 100, 2e-3
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / 10, 1 - step / steps)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert mean_iou(model, x, y) > 0.9
