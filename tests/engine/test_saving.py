"""States saved within an epoch, accumulated gradients, averages of weights, layer-wise rates."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import freqformer
from freqformer import FreqFormerError
from freqformer.checkpoints import average_weights
from freqformer.engine import RESUME_LAST, run
from freqformer.engine.position import Pace, move
from freqformer.tasks import Classification

STEPS = 6  # of an epoch, see conftest's tiny
PLAIN = {"drop": 0.0, "drop_path": 0.0, "mixup": 0, "cutmix": 0, "clip_grad": None}


class Killed(BaseException):
    """Ends a run at once, as a kill does: nothing of it catches this."""


@pytest.fixture
def killed_in(monkeypatch):
    """End a run at the start of a training step."""

    def arm(step):
        original = Classification.training_step
        calls = iter(range(10**6))

        def hooked(self, batch, batch_idx):
            if next(calls) == step:
                raise Killed
            return original(self, batch, batch_idx)

        monkeypatch.setattr(Classification, "training_step", hooked)
        return lambda: monkeypatch.setattr(Classification, "training_step", original)

    return arm


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"accumulate": 4}])
@pytest.mark.parametrize("step", [4, pytest.param(STEPS + 3, marks=pytest.mark.slow)])
def test_what_the_clock_saved_resumes_exactly(tiny, tmp_path, killed_in, left_behind, changes, step):
    run(tiny(tmp_path / "whole", **changes))
    disarm = killed_in(step)
    folder, settings = tmp_path / "run", {"save_every_minutes": 1e-9, **changes}
    with pytest.raises(Killed):
        run(tiny(folder, **settings))
    disarm()
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] > step - 4
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] > 0
    run(tiny(folder, resume=RESUME_LAST, **settings))
    whole, resumed = left_behind(tmp_path / "whole"), left_behind(folder)
    assert [name for name in whole if whole[name] != resumed[name]] == []


def test_a_signal_waits_for_the_step_that_is_being_accumulated(tiny, tmp_path, signal_at, left_behind):
    run(tiny(tmp_path / "whole", accumulate=4))
    disarm = signal_at(1)
    with pytest.raises(Exception, match="SIGTERM"):
        run(tiny(tmp_path / "run", accumulate=4))
    disarm()
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1
    run(tiny(tmp_path / "run", accumulate=4, resume=RESUME_LAST))
    whole, resumed = left_behind(tmp_path / "whole"), left_behind(tmp_path / "run")
    assert [name for name in whole if whole[name] != resumed[name]] == []


def test_accumulated_steps_are_those_of_the_larger_batch(tiny, tmp_path):
    one = run(tiny(tmp_path / "one", batch_size=16, **PLAIN))
    two = run(tiny(tmp_path / "two", batch_size=8, accumulate=2, **PLAIN))
    for left, right in zip(one["epochs"], two["epochs"], strict=True):
        assert left["train/loss"] == pytest.approx(right["train/loss"], rel=1e-5)
        assert left["lr"] == pytest.approx(right["lr"])
    ours, theirs = load_file(tmp_path / "one/model.safetensors"), load_file(tmp_path / "two/model.safetensors")
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4)


def test_the_rate_scales_with_the_images_of_a_step(tiny):
    config = tiny("run", lr=1.0, lr_base_batch=64, batch_size=16, accumulate=2)
    assert config.scaled_lr() == pytest.approx(0.5)
    assert config.scaled_lr(4) == pytest.approx(2.0)


def test_the_last_epochs_are_averaged_and_evaluated(tiny, tmp_path, command):
    folder = tmp_path / "run"
    metrics = run(tiny(folder, average_checkpoints=2))
    kept = sorted((folder / "checkpoints").glob("epoch-*.safetensors"))
    assert [path.name for path in kept] == ["epoch-0002.safetensors", "epoch-0003.safetensors"]
    mean = load_file(folder / "model_average.safetensors")
    parts = [load_file(path) for path in kept]
    for name, value in mean.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2)
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["current_model_state"]
    assert torch.equal(parts[1]["head.weight"], last["model.head.weight"])
    assert json.loads((folder / "metrics.json").read_text())["average"] == metrics["average"]
    answer = command(
        "eval", "--model-path", folder / "model_average.safetensors", "--data-set", "DIGITS", "--json", "--accelerator",
        "cpu", "--num-workers", 0, "--precision", "32-true",
    )  # fmt: skip
    assert json.loads(answer.out)["top1"] == pytest.approx(metrics["average"]["top1"])


def test_the_weights_lie_beside_their_average(tiny, finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    raw, average = load_file(finished / "model_raw.safetensors"), load_file(finished / "model.safetensors")
    assert raw.keys() == average.keys()
    assert not torch.equal(raw["head.weight"], average["head.weight"])
    assert {"top1", "top5", "loss"} <= metrics["raw"].keys()
    assert metrics["raw"] != metrics["best"]
    assert freqformer.load_model(finished / "model_raw.safetensors").num_classes == 10


def test_average_writes_the_mean_of_files_and_refuses_others(command, refused, finished, tmp_path):
    sources = [finished / "model.safetensors", finished / "model_raw.safetensors"]
    target = tmp_path / "mean.safetensors"
    answer = command("average", *sources, "--output", target)
    assert answer.code == 0, answer.err
    assert "mean of 2" in answer.out
    parts = [load_file(path) for path in sources]
    torch.testing.assert_close(
        load_file(target)["head.weight"], (parts[0]["head.weight"] + parts[1]["head.weight"]) / 2
    )
    assert freqformer.load_model(target).num_classes == 10
    assert "--overwrite" in refused("average", *sources, "--output", target)
    other = tmp_path / "other.pth"
    torch.save({"head.weight": torch.zeros(3)}, other)
    assert "another model" in refused("average", sources[0], other, "--output", tmp_path / "new.safetensors")


def test_an_average_of_half_precision_is_summed_in_double(tmp_path):
    for i, value in enumerate((1.0, 2**-9, 2**-9)):
        torch.save({"w": torch.tensor([value], dtype=torch.bfloat16), "n": torch.tensor(i)}, tmp_path / f"{i}.pth")
    mean = average_weights([tmp_path / f"{i}.pth" for i in range(3)])
    assert mean["w"].dtype == torch.bfloat16
    assert mean["w"].item() == pytest.approx((1 + 2**-8) / 3, rel=2**-8)
    assert mean["n"] == 2
    with pytest.raises(FreqFormerError, match="at least one"):
        average_weights([])


def test_epochs_that_were_not_kept_are_not_averaged_in_silence(tiny, tmp_path, finished):
    last = finished / "checkpoints" / "last.ckpt"
    with pytest.raises(FreqFormerError, match=r"no .*epoch-0003.safetensors to average.*--average-checkpoints"):
        run(tiny(tmp_path / "run", epochs=4, resume=str(last), average_checkpoints=2))


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 40), st.integers(1, 6), st.data())
def test_another_pace_goes_on_between_two_steps(old_batches, old_accumulate, batches, accumulate, data):
    old, new = (
        Pace(1000 // count, count, math.ceil(count / each), each)
        for count, each in ((old_batches, old_accumulate), (batches, accumulate))
    )
    done = data.draw(st.integers(0, old.batches))
    counters = [{"ready": n, "completed": n} for n in (done, 2 * old.batches + done, done, done)]
    loop = {
        "epoch_loop.batch_progress": {"current": counters[0], "total": counters[1]},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {"step": {"current": counters[2], "total": counters[3]}}
        },
        "epoch_loop.state_dict": {},
    }
    checkpoint = {"loops": {"fit_loop": loop}, "callbacks": {}}
    move(checkpoint, old, new)
    now = counters[0]["ready"]
    assert counters[1]["ready"] == 2 * new.batches + now
    # Never farther than before in images, and whole steps: as many as the run would have made to that batch.
    assert now == new.batches or (now % new.accumulate == 0 and now * new.images <= done * old.images)
    assert checkpoint["global_step"] == 2 * new.steps + math.ceil(now / new.accumulate)


def test_layer_decay_gives_deeper_layers_higher_rates(tiny):
    task, _, _ = tiny("run", layer_decay=0.5, lr=1.0).build()
    optimizer, scheduler = task.optimization(10)
    scheduler.step_update(10 * 3 - 1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    blocks = task.model.stages[0].blocks
    order = [task.model.stem.proj.weight, *(block.mlp.fc1.weight for block in blocks), task.model.head.weight]
    found = [rates[id(weight)] for weight in order]
    assert found == sorted(found)
    assert found[1] == pytest.approx(found[2] / 2)
    assert found[-1] == pytest.approx(max(rates.values()))


def test_the_record_shows_the_heads_rate_under_layer_decay(tiny, tmp_path):
    decayed = run(tiny(tmp_path / "decayed", layer_decay=0.5))
    plain = run(tiny(tmp_path / "plain"))
    assert [row["lr"] for row in decayed["epochs"]] == pytest.approx([row["lr"] for row in plain["epochs"]])


def test_checkpointed_blocks_give_the_same_run(tiny, tmp_path, left_behind):
    run(tiny(tmp_path / "run", grad_checkpointing=True, epochs=1))
    run(tiny(tmp_path / "plain", epochs=1))
    ours, theirs = left_behind(tmp_path / "run"), left_behind(tmp_path / "plain")
    assert [name for name in ours if ours[name] != theirs[name]] == []
