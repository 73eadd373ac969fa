"""The optimiser and its schedule as the config says."""

import pytest

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


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"cooldown_epochs": -1}, "--cooldown-epochs"),
        ({"decay_epochs": 0}, "--decay-epochs"),
        ({"decay_rate": 0}, "--decay-rate"),
    ],
)
def test_what_is_outside_its_range_is_refused(settings, flag):
    with pytest.raises(FreqFormerError, match=flag):
        ClassificationConfig(**settings).check()
