import dataclasses

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from freqformer import FreqFormerError
from freqformer.factory import create_model
from freqformer.layers import Block
from freqformer.tasks import Classification, ClassificationConfig
from freqformer.tasks.losses import TokenLabels, draw_box, hard_distillation, soft_distillation

OFF = {"mixup": 0.0, "cutmix": 0.0}


def config(**changes):
    return ClassificationConfig(**{"arch": "test_freqformer", "batch_size": 4, "epochs": 1, **changes})


def logits(seed, batch=5, classes=7):
    return torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed)) * 3


@given(st.integers(0, 1000), st.floats(0.5, 20))
def test_soft_distillation_is_the_divergence_from_the_teacher(seed, tau):
    student, teacher = logits(seed).double(), logits(seed + 1).double()
    p, q = (teacher / tau).softmax(1), (student / tau).softmax(1)
    expected = tau**2 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(soft_distillation(student, teacher, tau).double(), expected, atol=1e-3, rtol=1e-4)
    assert soft_distillation(student, teacher, tau) >= 0


@given(st.integers(0, 1000), st.floats(0.5, 20))
def test_a_student_that_agrees_has_nothing_to_learn(seed, tau):
    student = logits(seed).requires_grad_()
    loss = soft_distillation(student, logits(seed), tau)
    loss.backward()
    assert loss.abs() < 1e-3
    assert student.grad.abs().max() < 1e-4


@given(st.integers(0, 1000))
def test_hard_distillation_takes_the_teachers_class_for_the_truth(seed):
    student, teacher = logits(seed), logits(seed + 1)
    expected = -student.log_softmax(1)[torch.arange(5), teacher.argmax(1)].mean()
    torch.testing.assert_close(hard_distillation(student, teacher), expected)


@pytest.fixture
def teacher(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    return {"teacher_model": "test_resnet", "teacher_path": str(tmp_path / "teacher.safetensors")}


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_distillation_in_a_task(teacher, kind):
    torch.manual_seed(0)
    settings = {"smoothing": 0.0, **OFF, **teacher, "distillation_type": kind}
    task = Classification(config(**settings, distillation_alpha=0.3, distillation_tau=2.0), num_classes=3).eval()
    image, target = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    found = task.loss({"image": image, "target": target})
    own, opinion = task.model(image), task.criterion.teacher(image)
    taught = soft_distillation(own, opinion, 2.0) if kind == "soft" else hard_distillation(own, opinion)
    torch.testing.assert_close(found, 0.7 * F.cross_entropy(own, target) + 0.3 * taught)
    found.backward()
    assert all(p.grad is None for p in task.criterion.teacher.model.parameters())
    assert all(p.grad is not None for p in task.model.parameters())
    alone = Classification(config(**settings, distillation_alpha=0.0), num_classes=3, model=task.model)
    torch.testing.assert_close(alone.loss((image, target)), F.cross_entropy(own, target))


def test_the_teacher_is_no_part_of_the_students_state(teacher):
    with_teacher = Classification(config(**teacher, distillation_type="hard"), num_classes=3)
    without = Classification(config(), num_classes=3)
    assert with_teacher.state_dict().keys() == without.state_dict().keys()
    assert len(list(with_teacher.modules())) == len(list(without.modules()))
    optimizer, _ = with_teacher.optimization(2)
    plain, _ = without.optimization(2)
    counts = [sum(p.numel() for g in o.param_groups for p in g["params"]) for o in (optimizer, plain)]
    assert counts[0] == counts[1] == sum(p.numel() for p in without.model.parameters())
    with_teacher.train()
    assert not with_teacher.criterion.teacher.model.training


def test_a_teacher_of_other_classes(teacher):
    with pytest.raises(FreqFormerError, match="the teacher test_resnet has 3 classes and the data 10"):
        Classification(config(**teacher, distillation_type="hard"), num_classes=10)


@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.integers(0, 10**6))
def test_a_box_is_a_box(grid, seed):
    torch.manual_seed(seed)
    box = draw_box(grid)
    assert box.shape == grid
    assert torch.equal(box, box.any(1)[:, None] & box.any(0))
    for line in (box.any(1), box.any(0)):
        assert (line.int().diff() == 1).sum() <= 1
        assert line.sum() <= 2 * (len(line) // 2)


def test_boxes_have_every_size():
    torch.manual_seed(0)
    shares = torch.stack([draw_box((7, 7)).float().mean() for _ in range(500)])
    assert shares.min() == 0
    assert shares.max() > 0.6
    assert 0.15 < shares.mean() < 0.4


def pyramid(size=128, classes=3):
    torch.manual_seed(0)
    return create_model("test_spectformer_h", num_classes=classes, img_size=size).eval()


@pytest.mark.parametrize("size", [(128, 128), (100, 160), (36, 70)])
def test_swapping_everything_mirrors_the_batch_and_nothing_leaves_it(size):
    model, images = pyramid(size), torch.randn(3, 3, *size)
    first, *_, last = model.grids(size)
    features = model.forward_features(images)
    assert features.shape[1:3] == last
    assert torch.equal(model.forward_features(images, torch.zeros(first, dtype=torch.bool)), features)
    assert torch.equal(model.forward_features(images, torch.ones(first, dtype=torch.bool)), features.flip(0))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.integers(1, 5), st.sampled_from([(128, 128), (100, 160), (36, 70)]), st.booleans())
def test_the_loss_of_token_labels_is_the_papers(seed, batch, size, maps):
    """Against a few lines in the words of the published code, box by box."""
    model, classes, smoothing = pyramid(size), 3, 0.1
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, *size, generator=generator)
    target = torch.randint(classes, (batch,), generator=generator)
    (rows, columns), *_, (height, width) = model.grids(size)
    sample = {}
    whole, dense = F.one_hot(target, classes).float(), None
    if maps:
        # The same logits everywhere, so that it does not matter where the image was cut.
        scores = torch.randn(batch, classes, 1, 1, generator=generator).expand(-1, -1, 4, 4)
        named = torch.arange(classes).view(1, -1, 1, 1).expand(batch, -1, 4, 4)
        sample = {"label_map": torch.stack([scores, named], 1), "region": torch.tensor([[0.2, 0.3, 0.8, 0.7]] * batch)}
        whole = scores[:, :, 0, 0].softmax(1)
    dense = whole[:, None, None].expand(-1, height, width, -1)

    torch.manual_seed(seed)
    found = TokenLabels(classes, 0.7, 0.4, smoothing)(model, images, target, sample)

    torch.manual_seed(seed)
    box = draw_box((height, width))
    large = box.repeat_interleave(8, 0).repeat_interleave(8, 1)[:rows, :columns]
    tokens = model.stem(images.permute(0, 2, 3, 1))
    tokens[:, large] = tokens.flip(0)[:, large]
    own, token_logits = model.forward_head(model.stages(tokens), return_tokens=True)
    restored = token_logits.clone()
    restored[:, box] = token_logits.flip(0)[:, box]
    share = 1 - box.float().mean()
    mixed = share * whole + (1 - share) * whole.flip(0)

    def soft_cross_entropy(logits, target):
        smooth = (1 - smoothing) * target + smoothing / classes
        return -(smooth * logits.log_softmax(-1)).sum(-1).mean()

    expected = 0.7 * soft_cross_entropy(own, mixed) + 0.4 * soft_cross_entropy(restored, dense)
    torch.testing.assert_close(found, expected)


def test_token_labels_go_with_mixup_unless_there_are_maps(tmp_path):
    task = Classification(config(arch="test_freqformer_h", token_label=True, input_size=64), num_classes=3)
    for batch in (1, 2, 5):
        loss = task.loss((torch.randn(batch, 3, 64, 64), torch.arange(batch) % 3))
        loss.backward()
        assert loss.isfinite()
    assert task.mix is not None
    with_maps = config(arch="test_freqformer_h", token_label=True, token_label_data=str(tmp_path))
    assert Classification(with_maps, num_classes=3).mix is None
    plain = Classification(config(arch="test_freqformer_h", input_size=64), num_classes=3, model=task.model)
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(plain.eval()(image), task.eval()(image))  # nothing of it in evaluation


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("technique", ["token labels", "distillation"])
def test_a_sharded_network_has_the_same_loss_and_gradients(process_group, teacher, technique):
    changes = {
        "token labels": {"arch": "test_spectformer_h", "token_label": True, "input_size": 128},
        "distillation": {**teacher, "distillation_type": "soft"},
    }[technique]
    size = changes.get("input_size", 32)
    batch = torch.randn(3, 3, size, size), torch.arange(3)
    results = []
    for sharded in (False, True):
        torch.manual_seed(0)
        task = Classification(config(**changes, **OFF, drop_path=0.0), num_classes=3)
        if sharded:
            for module in [module for module in task.model.modules() if isinstance(module, Block)]:
                fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
            fully_shard(task.model, mesh=init_device_mesh("cpu", (1,)))
        torch.manual_seed(1)
        loss = task.loss(batch)
        loss.backward()
        grads = [p.grad.full_tensor() if sharded else p.grad for p in task.model.parameters()]
        results.append([loss.detach(), *grads])
    torch.testing.assert_close(*results)


@pytest.mark.slow
def test_a_compiled_network_has_one_graph_for_every_box():
    torch._dynamo.reset()
    counters.clear()
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        settings = {"arch": "test_spectformer_h", "token_label": True, "input_size": 128, "drop_path": 0.0, **OFF}
        task = Classification(config(**settings), num_classes=3)
        if compiled:
            task.criterion.forward = torch.compile(task.model.forward_tokens, backend="eager")
        for seed in range(4):
            torch.manual_seed(seed)
            losses.append(task.loss((torch.randn(4, 3, 128, 128), torch.arange(4) % 3)).item())
    assert counters["stats"]["unique_graphs"] == 1
    assert losses[4:] == pytest.approx(losses[:4], rel=1e-5)
    assert len(set(losses)) > 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distillation_type": "firm"}, "--distillation-type must be none, soft or hard"),
        ({"distillation_type": "soft"}, "--teacher-model must be given"),
        ({"teacher_model": "resnet18"}, "--distillation-type must be soft or hard with --teacher-model"),
        ({"teacher_path": "x.pth"}, "--teacher-model must be given with --teacher-path"),
        ({"distillation_alpha": 1.5}, "--distillation-alpha must be between 0 and 1"),
        ({"distillation_tau": 0.0}, "--distillation-tau must be more than 0"),
        ({"token_label_data": "maps"}, "--token-label-data must be none without --token-label"),
        ({"token_label_size": 7}, "--token-label-size must be none without --token-label"),
        ({"token_label": True, "cls_weight": 0.0, "dense_weight": 0.0}, "--cls-weight must be above 0"),
        ({"dense_weight": -1.0}, "--dense-weight must be 0"),
        ({"mixup_prob": 2.0}, "--mixup-prob must be between 0 and 1"),
        ({"mixup_switch_prob": -0.1}, "--mixup-switch-prob must be between 0 and 1"),
        ({"aug_repeats": -1}, "--aug-repeats must be 0 or more"),
        ({"remode": "noise"}, "--remode must be pixel, rand or const"),
        ({"recount": 0}, "--recount must be at least 1"),
        (
            {"token_label": True, "distillation_type": "hard", "teacher_model": "resnet18"},
            "--distillation-type must be none with --token-label",
        ),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(FreqFormerError, match=message):
        config(**changes).check()


def test_models_that_have_no_token_labels():
    with pytest.raises(FreqFormerError, match="--token-label needs a classifier of tokens"):
        Classification(config(token_label=True), num_classes=3)
    other_grid = config(arch="test_freqformer_h", token_label=True, token_label_size=7, input_size=128)
    with pytest.raises(FreqFormerError, match="--token-label-size must be the model's last grid, 4x4, not 7"):
        Classification(other_grid, num_classes=3)


def test_how_often_a_batch_is_mixed_and_by_what():
    images, targets = torch.rand(4, 3, 32, 32) + torch.arange(4).view(4, 1, 1, 1), torch.arange(4)
    settings = dataclasses.replace(config(), mixup_prob=0.6, mixup_switch_prob=0.25)
    task = Classification(settings, num_classes=4)
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for seed in range(300):
        torch.manual_seed(seed)
        mixed, mixed_targets = task.mix(images, targets)
        if mixed_targets.ndim == 1:
            kinds["none"] += 1
            assert torch.equal(mixed, images)
        else:
            # CutMix keeps whole pixels.
            of_one = (mixed == images) | (mixed == images.roll(1, 0))
            kinds["cutmix" if of_one.all() else "mixup"] += 1
    assert np.allclose([count / 300 for count in kinds.values()], [0.4, 0.45, 0.15], atol=0.08)
