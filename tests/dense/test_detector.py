"""Detectors: images of any and different sizes, boxes in their own pixels, labels from 0, and that they learn."""

import copy
import functools
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from freqformer import FreqFormerError
from freqformer.dense import DETECTORS, create_detector

SWIN = ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24})
BACKBONES = [
    *((arch, {}) for arch in ("test_gfnet_h", "test_spectformer_h", "test_dfformer", "test_gfnet", "test_freqformer")),
    *((arch, {}) for arch in ("test_convnext", "test_vit")),
    SWIN,
]


def make(detector="retinanet", arch="test_gfnet_h", names=("red", "blue"), **arguments):
    torch.manual_seed(0)
    settings = {"size": (64, 96), "fpn_channels": 16, "anchor_sizes": [8, 16, 24, 32, 48], "proposals": 20}
    return create_detector(arch, names, detector=detector, **{**settings, **arguments})


# For tests that change nothing of it; everything that it sees is a detection.
@functools.cache
def shared(detector, **arguments):
    return make(detector, score_thr=0.0, **arguments).eval()


def train_step(model, images, targets):
    torch.manual_seed(1)  # two-stage detectors draw which proposals they learn from
    losses = model(images, targets)
    model.zero_grad()
    sum(losses.values()).backward()
    return losses


def same(first, second):
    """Whether two lists of detections, or two dicts of losses, are equal bit for bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize(("arch", "arguments"), BACKBONES)
@pytest.mark.parametrize("head_norm", ["none", "group"])
def test_every_parameter_gets_a_gradient(make_scene, detector, arch, arguments, head_norm):
    # Or else distributed training fails.
    model = make(detector, arch, head_norm=head_norm, model_args=arguments)
    scenes = [make_scene(0, (64, 90)), make_scene(1, (80, 64))]
    losses = train_step(model, *zip(*scenes, strict=True))
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("empty", [(True, True), (True, False)])
def test_images_without_objects_are_learnt_from(make_scene, detector, empty):
    model = make(detector)
    scenes = [make_scene(seed, (64, 90)) for seed in range(2)]
    targets = [{key: t[key][:0] if none else t[key] for key in t} for (_, t), none in zip(scenes, empty, strict=True)]
    losses = train_step(model, [image for image, _ in scenes], targets)
    assert all(loss.isfinite() for loss in losses.values())
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("detector", DETECTORS)
def test_bytes_are_fractions_of_255(make_scene, detector):
    scenes = [make_scene(0), make_scene(1, (70, 50))]
    images, targets = zip(*scenes, strict=True)
    fractions = [image.float() / 255 for image in images]
    with torch.no_grad():
        assert same(shared(detector)(images), shared(detector)(fractions))
    model = make(detector)
    assert same(train_step(model, images, targets), train_step(model, fractions, targets))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(DETECTORS),
    st.lists(st.tuples(st.integers(8, 150), st.integers(8, 150)), min_size=1, max_size=3),
)
@torch.no_grad()
def test_detections_lie_in_their_own_images(make_scene, detector, sizes):
    found = shared(detector, max_dets=20)(
        [make_scene(1, (96, 96))[0][:, :h, :w].repeat(1, 2, 2)[:, :h, :w] for h, w in sizes]
    )
    assert len(found) == len(sizes)
    for each, (height, width) in zip(found, sizes, strict=True):
        count = len(each["boxes"])
        assert count <= 20
        assert each["labels"].shape == each["scores"].shape == (count,)
        assert set(each["labels"].tolist()) <= {0, 1}
        assert (each["scores"].diff() <= 0).all()
        assert ((each["scores"] >= 0) & (each["scores"] <= 1)).all()
        assert (each["boxes"] >= 0).all()
        assert (each["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()
        assert (each["boxes"][:, 2:] >= each["boxes"][:, :2]).all()
        assert ("masks" in each) == (detector == "maskrcnn")
        if "masks" in each:
            assert each["masks"].shape == (count, 1, height, width)
            assert ((each["masks"] >= 0) & (each["masks"] <= 1)).all()


@pytest.mark.parametrize("detector", DETECTORS)
@torch.no_grad()
def test_boxes_come_back_in_the_images_pixels(make_scene, detector):
    # The same pixels reach the network: once as they are, once resized by the detector from a larger image of blocks.
    image = make_scene(0, (64, 96))[0]
    large = image.repeat_interleave(4, 1).repeat_interleave(4, 2)
    model = shared(detector)
    resized = F.resize(large, [64, 96], antialias=True)
    (small,), (big,) = model([resized]), model([large])
    assert len(small["boxes"]) > 0
    # Averages are rounded to bytes in the one and not in the other.
    torch.testing.assert_close(big["scores"][:5], small["scores"][:5], atol=0.02, rtol=0)
    found = {tuple(box.tolist()) for box in (big["boxes"] / 4).round(decimals=0)}
    assert {tuple(box.tolist()) for box in small["boxes"][:5].round(decimals=0)} & found


@pytest.mark.parametrize("detector", DETECTORS)
@torch.no_grad()
def test_the_working_size_is_the_shorter_side_up_to_the_longest(make_scene, detector):
    model = make(detector, size=(64, 96)).eval()
    seen = []
    model.backbone.register_forward_hook(lambda module, given, features: seen.append(tuple(given[0].shape)))
    model([make_scene(0, (128, 128))[0]])
    model([make_scene(0, (50, 100))[0]])  # 48 x 96, padded to a multiple of 32
    model.resize_to((32, 64))
    model([make_scene(0, (128, 128))[0]])
    model([make_scene(0, (64, 128))[0], make_scene(0, (128, 64))[0]])
    # Of two shapes each goes alone: filters would see the padding.
    assert seen == [(1, 3, 64, 64), (1, 3, 64, 96), (1, 3, 32, 32), (1, 3, 32, 64), (1, 3, 64, 32)]


@pytest.mark.parametrize("detector", DETECTORS)
def test_in_training_images_keep_their_size(make_scene, detector):
    model = make(detector, size=(32, 32))
    seen = []
    model.backbone.register_forward_hook(lambda module, given, features: seen.append(tuple(given[0].shape)))
    train_step(model, *zip(make_scene(0, (96, 100)), make_scene(1, (70, 64)), strict=True))
    assert seen == [(2, 3, 96, 128)]


def test_images_are_normalised_as_the_backbone_wants(make_scene):
    seen = []
    for arch in ("test_gfnet_h", "test_vit"):
        model = make(arch=arch).eval()
        model.backbone.register_forward_hook(lambda module, given, features: seen.append(given[0]))
        with torch.no_grad():
            model([torch.full((3, 64, 64), 255, dtype=torch.uint8)])
    means, stds = torch.tensor([[0.485, 0.456, 0.406], [0.5] * 3]), torch.tensor([[0.229, 0.224, 0.225], [0.5] * 3])
    for image, mean, std in zip(seen, means, stds, strict=True):
        torch.testing.assert_close(image[0, :, 5, 5], (1 - mean) / std)


@pytest.mark.parametrize("detector", DETECTORS)
def test_labels_begin_at_0_in_and_out(make_scene, detector):
    # Of one class alone, 0, a two-stage detector must learn objects, not background.
    image, target = make_scene(0)
    target = {**target, "labels": torch.zeros_like(target["labels"])}
    model = make(detector, names=("thing",))
    before = target["labels"].clone()
    train_step(model, [image], [target])
    assert torch.equal(target["labels"], before)  # the caller's own are left alone
    model = make(detector, names=("a", "b", "c"), score_thr=0.0, max_dets=300).eval()
    with torch.no_grad():
        assert set(model([image])[0]["labels"].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("detector", DETECTORS)
@torch.no_grad()
def test_limits_of_score_and_number(make_scene, detector):
    model = make(detector, score_thr=0.0).eval()
    image = make_scene(0)[0]
    (everything,) = model([image])
    middle = everything["scores"][len(everything["scores"]) // 2].item()
    model.limit(score_thr=middle)
    (above,) = model([image])
    assert 0 < len(above["scores"]) < len(everything["scores"])
    assert (above["scores"] > middle).all()
    model.limit(max_dets=3)
    (few,) = model([image])
    torch.testing.assert_close(few["scores"], above["scores"][:3])
    model.limit(score_thr=0.0)
    assert len(model([image])[0]["scores"]) == 3
    model.limit(score_thr=1.0)
    (none,) = model([image])
    assert none["boxes"].shape == (0, 4)
    assert all(len(value) == 0 for value in none.values())


@pytest.mark.parametrize("detector", DETECTORS)
def test_each_level_has_its_anchors(detector):
    model = make(detector, anchor_sizes=[10, 20, 30, 40, 50], anchor_ratios=[0.5, 2.0])
    generator = model.net.anchor_generator if detector == "retinanet" else model.net.rpn.anchor_generator
    steps = 3 if detector == "retinanet" else 1
    assert generator.num_anchors_per_location() == [2 * steps] * 5
    for side, anchors in zip([10, 20, 30, 40, 50], generator.cell_anchors, strict=True):
        width, height = (anchors[:, 2:] - anchors[:, :2]).T
        sides = torch.tensor([side * 2 ** (step / 3) for _ in range(2) for step in range(steps)])
        torch.testing.assert_close((width * height).sqrt(), sides, atol=1.5, rtol=0)  # rounded to pixels
        torch.testing.assert_close(height / width, torch.tensor([0.5] * steps + [2.0] * steps), atol=0.3, rtol=0)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("arch", ["test_gfnet_h", "test_gfnet"])
@pytest.mark.parametrize("channels", [16, 32])  # 32 is also what the last stage has
def test_the_pyramids_levels(detector, arch, channels):
    model = make(detector, arch, fpn_channels=channels)
    levels = list(model.net.backbone(torch.randn(1, 3, 128, 256)).values())
    strides = (8, 16, 32, 64, 128) if detector == "retinanet" else (4, 8, 16, 32, 64)
    assert [tuple(level.shape) for level in levels] == [(1, channels, 128 // s, 256 // s) for s in strides]


def test_the_coarse_levels_are_made_of_the_last_stage_itself():
    model = make(fpn_channels=32)
    pyramid = model.net.backbone
    for p in (*pyramid.neck.inner_blocks.parameters(), *pyramid.neck.layer_blocks.parameters()):
        torch.nn.init.zeros_(p)
    levels = list(pyramid(torch.randn(1, 3, 64, 64)).values())
    assert all((level == 0).all() for level in levels[:3])
    assert (levels[3] != 0).any()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"detector": "yolo"}, "there is no detector 'yolo': choose one of retinanet, fasterrcnn, maskrcnn"),
        ({"head_norm": "batch"}, "there is no norm 'batch' of heads: choose none or group"),
        ({"anchor_sizes": [8, 16]}, "retinanet has 5 levels and needs as many anchor sizes, not 2"),
        ({"arch": "nothing"}, "there is no backbone 'nothing'"),
    ],
)
def test_what_makes_no_detector_is_refused_in_one_line(arguments, what):
    with pytest.raises(FreqFormerError, match=what) as refusal:
        make(**arguments)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("arch", ["test_gfnet_h", "test_gfnet", "test_vit"])
def test_gradient_checkpointing_changes_no_gradient(make_scene, arch):
    model = make(arch=arch)
    scenes = list(zip(make_scene(0), make_scene(1), strict=True))
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        train_step(model, *scenes)
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("arch", ["test_gfnet_h", "test_vit"])
def test_weight_decay_spares_the_position_embedding(arch):
    model = make(arch=arch)
    spared = model.no_weight_decay() & dict(model.named_parameters()).keys()
    assert "net.backbone.body.network.model.pos_embed" in spared


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="torch.compile's CPU code needs a compiler")
def test_compiled_it_finds_and_learns_the_same(make_scene):
    torch._dynamo.reset()
    eager, compiled = make(score_thr=0.0), make(score_thr=0.0)
    compiled.compile(backend="aot_eager")
    scenes = list(zip(make_scene(0), make_scene(1), strict=True))
    torch.testing.assert_close(train_step(compiled, *scenes), train_step(eager, *scenes), rtol=1e-4, atol=1e-5)
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    with torch.no_grad():
        found, expected = compiled.eval()([scenes[0][0]]), eager.eval()([scenes[0][0]])
    torch.testing.assert_close(found[0]["scores"], expected[0]["scores"], rtol=1e-3, atol=1e-4)


def precision(model, images, targets):
    """AP50 of boxes and, where there are, masks."""
    from torchmetrics.detection import MeanAveragePrecision

    kinds = ("bbox", "segm") if model.has_masks else ("bbox",)
    metric = MeanAveragePrecision(iou_type=kinds, backend="faster_coco_eval")
    model.eval()
    with torch.no_grad():
        found = model(images)
    if model.has_masks:
        found = [{**each, "masks": each["masks"][:, 0] > 0.5} for each in found]
        targets = [{**each, "masks": each["masks"].bool()} for each in targets]
    metric.update(found, targets)
    scores = metric.compute()
    model.train()
    return [scores["map_50" if len(kinds) == 1 else f"{kind}_map_50"].item() for kind in kinds]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("detector", "arch"),
    [
        ("retinanet", "test_gfnet_h"),
        ("retinanet", "test_gfnet"),
        ("maskrcnn", "test_gfnet_h"),
        ("fasterrcnn", "test_dfformer"),
    ],
)
def test_it_learns_a_few_images_by_heart(make_scene, detector, arch):
    images, targets = zip(*(make_scene(seed, (96, 128 - 8 * seed)) for seed in range(3)), strict=True)
    model = make(
        detector,
        arch,
        size=(96, 128),
        fpn_channels=32,
        head_norm="group",
        anchor_sizes=[16, 24, 32, 48, 64],
        proposals=50,
    )
    assert max(precision(model, images, targets)) < 0.3
    steps, peak = 150, 2e-3
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / 20, 1 - step / steps)
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert min(precision(model, images, targets)) > 0.9


@pytest.mark.parametrize("detector", ["fasterrcnn", "maskrcnn"])
def test_the_first_images_that_come_change_nothing_for_those_after(make_scene, detector):
    """torchvision would take the levels' strides from the first batch, which may be mostly padding."""
    model = make(detector, size=(20, 96), score_thr=0.0).eval()
    image = make_scene(0, (96, 40))[0]
    with torch.no_grad():
        expected = copy.deepcopy(model)([image])[0]
        model([torch.rand(3, 20, 44)])
        found = model([image])[0]
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("detector", DETECTORS)
def test_in_bfloat16_boxes_and_scores_are_float32_and_masks_bool(make_scene, detector):
    """torchvision would round boxes to bfloat16, and keep a float of every pixel of every mask."""
    model = make(detector, score_thr=0.0).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model([make_scene(0, (64, 96))[0]])[0]
    assert len(found["boxes"]) > 0
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert detector != "maskrcnn" or found["masks"].dtype == torch.bool
