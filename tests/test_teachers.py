import copy

import pytest
import timm
import torch
from safetensors.torch import save_file

from freqformer import FreqFormerError
from freqformer.checkpoints import save_model
from freqformer.factory import create_model, describe_model
from freqformer.teachers import Teacher, load_teacher, token_logits

STUDENT = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture
def resnet(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3)
    save_file(model.state_dict(), tmp_path / "resnet.safetensors")
    return model.eval(), tmp_path / "resnet.safetensors"


def test_a_teacher_of_timm_sees_images_as_it_is_used_to(resnet):
    model, path = resnet
    teacher = Teacher(load_teacher("resnet10t", str(path), 3), *STUDENT)
    pixels = torch.rand(2, 3, 176, 176)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in STUDENT)
    cfg = model.pretrained_cfg
    own_mean, own_std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert cfg["input_size"] == (3, 176, 176)
    torch.testing.assert_close(teacher((pixels - mean) / std), model((pixels - own_mean) / own_std), atol=1e-4, rtol=0)
    assert teacher(torch.randn(2, 3, 40, 64)).shape == (2, 3)  # resized
    assert not teacher((pixels - mean) / std).requires_grad


def test_a_teacher_is_frozen_and_copies_share_it(resnet):
    model = load_teacher("resnet10t", str(resnet[1]), 3)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    teacher = Teacher(model, *STUDENT)
    assert copy.deepcopy([teacher])[0] is teacher


def test_a_teacher_of_this_package_from_a_run_or_bare_weights(tmp_path):
    model = create_model("test_gfnet", num_classes=3).eval()
    save_model(tmp_path / "run", model.state_dict(), describe_model(model, {}))
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    images = torch.randn(2, 3, 32, 32)
    for weights in ("run", "bare.pth"):
        assert torch.equal(load_teacher("test-gfnet", str(tmp_path / weights), 3)(images), model(images))
        with pytest.raises(FreqFormerError, match="test-gfnet has 3 classes and the data 7"):
            load_teacher("test-gfnet", str(tmp_path / weights), 7)


def test_teachers_that_cannot_be_used(resnet, tmp_path):
    path = str(resnet[1])
    with pytest.raises(
        FreqFormerError, match="class-count mismatch: the teacher resnet10t has 3 classes and the data 5"
    ):
        load_teacher("resnet10t", path, 5)
    with pytest.raises(FreqFormerError, match="does not fit the teacher resnet18"):
        load_teacher("resnet18", path, 3)
    with pytest.raises(FreqFormerError, match="does not fit the teacher resnot18"):
        load_teacher("resnot18", path, 3)
    with pytest.raises(FreqFormerError, match="no checkpoint"):
        load_teacher("resnet10t", str(tmp_path / "none.pth"), 3)
    # Nobody publishes weights of these.
    for weights in (None, "timm"):
        with pytest.raises(
            FreqFormerError, match=r"cannot load timm's weights of the teacher test_gfnet.*--teacher-path"
        ):
            load_teacher("test_gfnet", weights, 10)


SMALL_SWIN = {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 2}


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("resnet10t", {}, (96, 64)),
        ("test_efficientnet", {}, (96, 64)),
        ("swin_tiny_patch4_window7_224", SMALL_SWIN, (64, 64)),
        ("test_gfnet", {}, (32, 32)),
    ],
)
def test_where_the_head_is_linear_the_tokens_mean_is_the_images_logit(name, arguments, size):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **arguments).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        tokens = token_logits(model, images)
        torch.testing.assert_close(tokens.mean((2, 3)), model(images), atol=1e-5, rtol=1e-4)
    assert tokens.std(dim=(2, 3)).min() > 0


def test_tokens_of_a_vit_are_its_head_on_each():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=10, img_size=(48, 64)).eval()
    images = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        features = model.forward_features(images)
        expected = model.head(model.fc_norm(features[:, 1:])).unflatten(1, (3, 4)).permute(0, 3, 1, 2)
        torch.testing.assert_close(token_logits(model, images), expected)


def test_a_classifier_of_tokens_is_used_where_there_is_one():
    model = create_model("test_freqformer_h", num_classes=3, img_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        _, tokens = model.forward_head(model.forward_features(images), return_tokens=True)
        assert torch.equal(token_logits(model, images), tokens.permute(0, 3, 1, 2))
