"""The optimiser and its schedule as the config says."""

import math

import pytest
import torch

from freqformer import FreqFormerError
from freqformer.tasks import Classification, ClassificationConfig

STEPS = 10  # of an epoch


def optimization(**settings):
    settings = {"arch": "test_gfnet", "lr": 0.5, "lr_base_batch": None, "warmup_epochs": 0, **settings}
    config = ClassificationConfig(**settings)
    return Classification(config, num_classes=3).optimization(STEPS), config


def rates(**settings):
    """The learning rate of every epoch's first step, the cool-down's among them."""
    (optimizer, scheduler), config = optimization(**settings)
    for epoch in range(config.all_epochs()):
        scheduler.step_update(epoch * STEPS)
        yield optimizer.param_groups[0]["lr"]


def test_adams_constants():
    (optimizer, _), _ = optimization(opt_eps=1e-3, opt_betas=(0.7, 0.8))
    assert {group["eps"] for group in optimizer.param_groups} == {1e-3}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.7, 0.8)}
    (optimizer, _), _ = optimization()
    assert {group["eps"] for group in optimizer.param_groups} == {1e-8}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}


@pytest.mark.parametrize("sched", ["cosine", "tanh", "poly"])
def test_a_cool_down_lies_after_the_schedule_at_its_end(sched):
    plain = list(rates(sched=sched, epochs=4, min_lr=0.1))
    cooled = list(rates(sched=sched, epochs=4, min_lr=0.1, cooldown_epochs=2))
    assert cooled == pytest.approx([*plain, 0.1, 0.1])


def test_the_other_schedules_have_no_cool_down():
    assert len(list(rates(sched="step", epochs=4, cooldown_epochs=2))) == 4


def test_steps_of_the_schedule_step():
    assert list(rates(sched="step", epochs=6, decay_epochs=2, decay_rate=0.5)) == pytest.approx(
        [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    )


def test_a_warm_up_before_the_schedule_is_upstreams():
    """FreqFit's rate of an epoch: a line to its W-th, then half a cosine over the T - W that are left."""
    warm, total, lr = 5, 100, 0.5
    expected = [
        lr * epoch / warm if epoch < warm else lr * 0.5 * (1 + math.cos(math.pi * (epoch - warm) / (total - warm)))
        for epoch in range(total)
    ]
    found = rates(epochs=total, warmup_epochs=warm, warmup_prefix=True, warmup_lr=0.0, min_lr=0.0)
    assert list(found) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("sched", ["cosine", "tanh", "poly", "step"])
def test_the_schedule_after_a_warm_up_is_that_of_a_shorter_run(sched):
    given = {"sched": sched, "min_lr": 0.01, "decay_epochs": 2}
    prefixed = list(rates(epochs=8, warmup_epochs=2, warmup_prefix=True, warmup_lr=0.0, **given))
    assert prefixed == pytest.approx([0, 0.25, *rates(epochs=6, **given)])


@pytest.mark.parametrize("arch", ["test_gfnet", "test_dfformer"])
def test_decay_of_all_spares_the_classifiers_bias_alone(arch):
    task = Classification(ClassificationConfig(arch=arch, weight_decay=0.1, decay_all=True), num_classes=3)
    optimizer, _ = task.optimization(STEPS)
    spared, decayed = optimizer.param_groups
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0, 0.1)
    classifier = task.model.get_classifier()
    classifier = getattr(classifier, "fc2", classifier)
    assert [id(p) for p in spared["params"]] == [id(classifier.bias)]
    assert len(decayed["params"]) == len(list(task.model.parameters())) - 1


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_decay": 0.0},
        {"weight_decay": 0.1},
        {"weight_decay": 0.0, "decay_all": True},
        {"weight_decay": 0.1, "decay_all": True},
        {"weight_decay": 0.1, "layer_decay": 0.5},
        {"weight_decay": 0.0, "layer_decay": 0.5},
    ],
)
def test_what_is_frozen_has_no_place_in_the_optimiser(settings):
    task = Classification(ClassificationConfig(arch="test_gfnet", **settings), num_classes=3)
    task.model.requires_grad_(False)
    task.model.head.requires_grad_(True)
    optimizer, _ = task.optimization(STEPS)
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for p in task.model.head.parameters()}
    task.model(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    assert {id(p) for p in optimizer.state} == given


def test_nothing_to_train_is_one_line():
    task = Classification(ClassificationConfig(arch="test_gfnet"), num_classes=3)
    task.model.requires_grad_(False)
    with pytest.raises(FreqFormerError, match="empty parameter list"):
        task.optimization(STEPS)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"epochs": 5, "warmup_epochs": 5, "warmup_prefix": True}, "--warmup-epochs must be less than --epochs 5"),
        ({"decay_all": True, "layer_decay": 0.9}, "--layer-decay must be none with --decay-all"),
        ({"resize": "stretch"}, "--resize must be random, crop or squash"),
        ({"resize": "squash", "crop_pct": 0.9}, "--crop-pct must be 1 with --resize squash"),
        ({"cooldown_epochs": -1}, "--cooldown-epochs"),
        ({"decay_epochs": 0}, "--decay-epochs"),
        ({"decay_rate": 0}, "--decay-rate"),
    ],
)
def test_what_is_outside_its_range_is_refused(settings, flag):
    with pytest.raises(FreqFormerError, match=flag):
        ClassificationConfig(**settings).check()
