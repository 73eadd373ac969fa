"""Features of any backbone: their strides and channels on any image, and the weights that they start from."""

import functools

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import freqformer
from freqformer import FreqFormerError
from freqformer.checkpoints import save_model, save_weights
from freqformer.dense import STRIDES, make_backbone
from freqformer.dense.backbone import SimplePyramid
from freqformer.factory import describe_model
from freqformer.models.loading import load_checkpoint

PYRAMIDS = ["test_gfnet_h", "test_spectformer_h", "test_freqformer_h", "test_dfformer", "test_cdfformer", "test_afno"]
ISOTROPIC = ["test_gfnet", "test_spectformer", "test_freqformer"]
SWIN = ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24, "drop_path_rate": 0.0})
VIT = ("vit_tiny_patch16_224", {"depth": 3})
TIMM = [("resnet10t", {}), ("test_convnext", {}), SWIN]


@functools.cache
def shared(arch, **arguments):
    torch.manual_seed(0)
    return make_backbone(arch, **arguments).eval()


def images(height, width, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def network_of(backbone):
    return backbone.network.model


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PYRAMIDS), st.integers(1, 2), st.integers(16, 110), st.integers(16, 110))
@torch.no_grad()
def test_pyramids_have_their_strides_on_any_image(arch, batch, height, width):
    backbone = shared(arch)
    assert backbone.strides == STRIDES
    assert not backbone.is_isotropic
    for feature, stride, channels in zip(
        backbone(images(height, width, batch)), backbone.strides, backbone.channels, strict=True
    ):
        if "dfformer" in arch or arch == "test_afno":  # overlapping convolutions keep their own arithmetic
            assert feature.shape[:2] == (batch, channels)
            assert abs(feature.shape[2] - height / stride) <= 1
            assert abs(feature.shape[3] - width / stride) <= 1
        else:
            assert feature.shape == (batch, channels, -(-height // stride), -(-width // stride))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(ISOTROPIC), st.integers(1, 100), st.integers(1, 100))
@torch.no_grad()
def test_isotropic_models_give_their_one_grid(arch, height, width):
    backbone = shared(arch)
    assert backbone.is_isotropic
    assert (backbone.strides, backbone.channels) == ((8,), (32,))
    (feature,) = backbone(images(height, width))
    assert feature.shape == (1, 32, -(-height // 8), -(-width // 8))


@pytest.mark.parametrize(("arch", "arguments"), TIMM)
@pytest.mark.parametrize("strides", [STRIDES, STRIDES[1:], (16,)])
def test_timms_pyramids_give_channels_first(arch, arguments, strides):
    backbone = make_backbone(arch, strides=strides, **arguments).eval()
    assert backbone.layout == ("NHWC" if arch.startswith("swin") else "NCHW")
    with torch.no_grad():
        features = backbone(images(96, 160, 2))
    assert backbone.strides == strides
    assert [tuple(f.shape) for f in features] == [
        (2, c, 96 // s, 160 // s) for c, s in zip(backbone.channels, strides, strict=True)
    ]


def test_timms_plain_transformers_are_isotropic():
    backbone = make_backbone(VIT[0], **VIT[1]).eval()
    with torch.no_grad():
        assert [f.shape for f in backbone(images(64, 96))] == [(1, 192, 4, 6)]
    assert backbone.is_isotropic
    assert backbone.strides == (16,)
    assert "network.model.pos_embed" in backbone.no_weight_decay() & dict(backbone.named_parameters()).keys()


@pytest.mark.parametrize("native_size", [None, 64, (64, 96), (96, 64)])
def test_a_swin_made_for_a_size_takes_others(native_size):
    backbone = make_backbone(SWIN[0], native_size=native_size, **SWIN[1]).eval()
    with torch.no_grad():
        assert [tuple(f.shape[2:]) for f in backbone(images(96, 32))] == [(24, 8), (12, 4), (6, 2), (3, 1)]


@pytest.mark.parametrize("arch", [*PYRAMIDS, *ISOTROPIC])
@pytest.mark.parametrize("strides", [STRIDES, (8, 16, 32), (4, 16)])
def test_every_parameter_of_ours_serves_the_features(arch, strides):
    backbone = make_backbone(arch, strides=strides)
    norms = [key for key, _ in backbone.named_parameters() if "out_norms" in key]
    assert len(norms) == 2 * len(backbone.strides)
    sum((f * torch.randn_like(f)).sum() for f in backbone(images(64, 96, 2))).backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("arch", ["test_gfnet_h", "test_gfnet"])
def test_features_are_normalised_by_norms_of_their_own(arch):
    backbone = make_backbone(arch).eval()
    with torch.no_grad():
        for feature in backbone(images(64, 64)):
            torch.testing.assert_close(feature.mean(dim=1), torch.zeros_like(feature[:, 0]), atol=1e-5, rtol=0)
        before = backbone(images(64, 64))
        for key, p in backbone.named_parameters():
            if "out_norms" in key and key.endswith("bias"):
                p += 3
        for feature, old in zip(backbone(images(64, 64)), before, strict=True):
            torch.testing.assert_close(feature, old + 3)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([4, 8, 16, 32]), st.integers(1, 4), st.integers(1, 4))
@torch.no_grad()
def test_the_simple_pyramid_makes_every_stride_of_one_grid(stride, rows, columns):
    # Of images whose sides 32 divides, as detectors and segmenters pad them.
    pyramid = SimplePyramid(16, stride, 12)
    levels = pyramid(images(32 * rows // stride, 32 * columns // stride).mean(1, keepdim=True).expand(-1, 16, -1, -1))
    assert [tuple(level.shape) for level in levels] == [(1, 12, 32 * rows // s, 32 * columns // s) for s in STRIDES]


def test_the_simple_pyramid_takes_powers_of_two_alone():
    with pytest.raises(FreqFormerError, match="patches of 4, 8, 16 or 32 pixels, the backbone has 14"):
        SimplePyramid(16, 14, 12)


@pytest.mark.parametrize(
    ("arch", "arguments", "what"),
    [
        ("gfnet_nope", {}, r"there is no backbone 'gfnet_nope': `freqformer models`"),
        ("test_gfnet_h", {"depht": 3}, "cannot make test_gfnet_h: .*'depht'"),
        ("resnet10t", {"depht": 3}, "resnet10t makes no backbone .*'depht'"),
        ("resnet10t", {"native_size": 64}, "resnet10t keeps nothing .* leave out --native-size"),
        ("test_gfnet_h", {"strides": (2, 4)}, "test_gfnet_h has features of strides 4, 8, 16, 32, and 2, 4 are needed"),
        ("resnet10t", {"strides": (64,)}, "resnet10t has features of strides 2, 4, 8, 16, 32, and 64 are needed"),
        ("mixer_s32_224", {}, r"images of any size: Input height \(64\) doesn't match model \(224\)"),
        ("vit_small_patch14_dinov2", {"depth": 3}, r"images of any size: .*divisible by patch size \(14\)"),
        ("test_gfnet_h", {"weights": "nowhere.pth"}, "there is no checkpoint nowhere.pth"),
        ("resnet10t", {"weights": "nowhere.pth"}, "there is no checkpoint nowhere.pth"),
        ("test_gfnet_h", {"pretrained": True}, "no stable link to weights of test_gfnet_h"),
    ],
)
def test_what_makes_no_backbone_is_refused_in_one_line(arch, arguments, what):
    with pytest.raises(FreqFormerError, match=what) as refusal:
        make_backbone(arch, **arguments)
    assert len(str(refusal.value).splitlines()) == 1


def test_published_weights_that_cannot_be_had_are_named(monkeypatch):
    create = timm.create_model

    def offline(name, pretrained=False, **arguments):
        if pretrained:
            raise OSError("no network\nand more")
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(FreqFormerError, match=r"^cannot fill resnet10t from timm's published weights: no network"):
        make_backbone("resnet10t", pretrained=True)


def classifier_run(folder, arch, size):
    torch.manual_seed(2)
    model = freqformer.create_model(arch, img_size=size, num_classes=5)
    save_model(folder, model.state_dict(), describe_model(model, {}))
    return model


@pytest.mark.parametrize("arch", ["test_gfnet_h", "test_gfnet", "test_dfformer"])
@pytest.mark.parametrize("of", ["run", "file"])
@pytest.mark.parametrize("strides", [STRIDES, STRIDES[1:]])
def test_a_classifier_of_another_size_is_resampled_to_the_native_one(tmp_path, arch, of, strides):
    classifier = classifier_run(tmp_path, arch, (64, 96))
    path = tmp_path if of == "run" else tmp_path / "model.safetensors"
    backbone = make_backbone(arch, strides=strides, native_size=(96, 64), weights=path)
    state = network_of(backbone).state_dict()
    same_size = freqformer.create_model(arch, img_size=(96, 64), num_classes=5)
    report = load_checkpoint(same_size, classifier.state_dict())
    assert report.resampled
    expected = same_size.state_dict()
    taken = {key for key in state if not key.startswith("out_norms.")}
    assert taken == {key for key in expected if not key.startswith(("norm.", "head."))}
    assert all(torch.equal(state[key], expected[key]) for key in taken)


def test_another_models_run_is_refused(tmp_path):
    classifier_run(tmp_path, "test_dfformer", (64, 64))
    with pytest.raises(FreqFormerError, match="does not fit test_gfnet_h") as refusal:
        make_backbone("test_gfnet_h", weights=tmp_path)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(("arch", "arguments"), [*TIMM, VIT])
def test_a_file_of_timms_model_is_loaded(tmp_path, arch, arguments):
    torch.manual_seed(3)
    model = timm.create_model(arch, num_classes=5, **arguments).eval()
    path = tmp_path / "model.safetensors"
    save_weights(path, model.state_dict(), None)
    fresh = make_backbone(arch, **arguments).network
    network = make_backbone(arch, weights=path, **arguments).network
    given = {key.replace(".", "_"): value for key, value in model.state_dict().items()}
    own = network.state_dict()
    assert all(torch.equal(value, given[key.removeprefix("model.").replace(".", "_")]) for key, value in own.items())
    assert not all(torch.equal(value, fresh.state_dict()[key]) for key, value in own.items())


@pytest.mark.parametrize("arch", ["resnet10t", "test_vit"])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda state: dict(list(state.items())[:3]), r"does not fit \w+: it has no "),
        (lambda state: {key: torch.zeros(*value.shape, 2) for key, value in state.items()}, "cannot fill "),
        (lambda state: {"other": torch.zeros(3)}, r"does not fit \w+: it has no "),
    ],
    ids=["lacking", "shapes", "another"],
)
def test_a_file_that_does_not_fit_timms_model_is_refused(tmp_path, arch, change, what):
    path = tmp_path / "model.safetensors"
    save_weights(path, change(timm.create_model(arch).state_dict()), None)
    with pytest.raises(FreqFormerError, match=what) as refusal:
        make_backbone(arch, weights=path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("arch", ["test_gfnet_h", "resnet10t"])
def test_a_damaged_file_is_refused(tmp_path, arch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    with pytest.raises(FreqFormerError, match=str(path)) as refusal:
        make_backbone(arch, weights=path)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arch", "arguments"), [("test_gfnet_h", {}), ("test_gfnet", {}), ("test_dfformer", {}), SWIN, VIT]
)
def test_gradient_checkpointing_changes_no_gradient(arch, arguments):
    torch.manual_seed(0)
    backbone = make_backbone(arch, **arguments)
    gradients = []
    for enable in (False, True):
        backbone.set_grad_checkpointing(enable)
        backbone.zero_grad()
        sum(f.square().mean() for f in backbone(images(64, 64, 2))).backward()
        gradients.append({key: p.grad.clone() for key, p in backbone.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key)


def test_a_backbone_without_gradient_checkpointing_says_so():
    backbone = make_backbone("test_gfnet_h")
    backbone.network = torch.nn.Identity()
    with pytest.raises(FreqFormerError, match="leave out --grad-checkpointing"):
        backbone.set_grad_checkpointing()
