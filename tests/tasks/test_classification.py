import dataclasses
import itertools
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Trainer
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from freqformer import FreqFormerError
from freqformer.models.isotropic import isotropic
from freqformer.tasks import Classification, ClassificationConfig, RunConfig, preprocessing

# Lightning's advice, which tiny data sets do not need, and its own use of what torch deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
]

OFF = {"mixup": 0.0, "cutmix": 0.0}


def config(**changes):
    settings = {"arch": "test_freqformer", "batch_size": 4, "epochs": 1, "lr_base_batch": None, **changes}
    return ClassificationConfig(**settings)


def trainer(steps=-1, epochs=1):
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


class Dicts(torch.utils.data.Dataset):
    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image, target = self.pairs[index]
        return {"image": image, "target": int(target), "index": index}


def random_pairs(count, classes=10, size=32):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size, size, generator=generator)
    return TensorDataset(images, torch.arange(count) % classes)


def separable(count):
    """Two classes: bright in one corner or in another."""
    images = 0.1 * torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(count) % 2
    images[targets == 0, :, :16, :16] += 2
    images[targets == 1, :, 16:, 16:] += 2
    return TensorDataset(images, targets)


@pytest.mark.parametrize("form", [lambda pairs: pairs, Dicts], ids=["pairs", "dicts"])
@pytest.mark.parametrize("mix", [OFF, {}, {"cutmix": 0.0}, {"mixup": 0.0}], ids=["none", "both", "mixup", "cutmix"])
def test_it_trains_in_the_users_own_trainer(form, mix):
    torch.manual_seed(0)
    task = Classification(config(lr=1e-2, warmup_epochs=0, **mix), num_classes=10)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    data = form(random_pairs(8))
    lightning = trainer(steps=2)
    lightning.fit(task, DataLoader(data, batch_size=4), DataLoader(data, batch_size=3))
    assert lightning.global_step == 2
    assert all(p.isfinite().all() for p in task.model.parameters())
    assert all(not torch.equal(value, before[key]) for key, value in task.model.state_dict().items())
    assert lightning.callback_metrics["train/loss"].isfinite()
    assert {"val/loss", "val/top1", "val/top5"} <= lightning.callback_metrics.keys()
    assert task.confusion.confmat.sum() == 8


@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize("mix", [OFF, {}], ids=["plain", "mixed"])
def test_odd_batches(batch, mix):
    task = Classification(config(batch_size=batch, **mix), num_classes=10)
    images, targets = random_pairs(batch).tensors
    for form in ((images, targets), {"image": images, "target": targets}):
        loss = task.loss(form)
        assert loss.shape == ()
        assert loss.isfinite()
        loss.backward()


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_few_classes(classes):
    task = Classification(config(), num_classes=classes)
    data = random_pairs(6, classes)
    trainer(steps=1).fit(task, DataLoader(data, batch_size=3), DataLoader(data, batch_size=3))
    assert task(data.tensors[0]).shape == (6, classes)


def test_loss_is_smoothed_cross_entropy_without_mixing():
    task = Classification(config(smoothing=0.2, **OFF), num_classes=10).eval()
    images, targets = random_pairs(6).tensors
    log_p = task(images).log_softmax(dim=1)
    right = log_p[torch.arange(6), targets]
    torch.testing.assert_close(task.loss((images, targets)), -(0.8 * right + 0.2 * log_p.mean(dim=1)).mean())


def test_mixing_changes_the_loss_by_the_torch_seed():
    task = Classification(config(), num_classes=10).eval()
    batch = tuple(random_pairs(6).tensors)
    losses = []
    for seed in (0, 0, 1, 2, 3):
        torch.manual_seed(seed)
        losses.append(task.loss(batch).item())
    assert losses[0] == losses[1]
    assert len(set(losses)) > 2


@pytest.mark.slow
def test_it_learns_a_separable_problem():
    torch.manual_seed(0)
    task = Classification(config(epochs=8, lr=3e-3, warmup_epochs=0, smoothing=0.0, **OFF), num_classes=2)
    images, targets = separable(64).tensors
    first = task.loss((images, targets)).item()
    lightning = trainer(epochs=8)
    data = separable(64)
    lightning.fit(task, DataLoader(data, batch_size=16, shuffle=True), DataLoader(data, batch_size=20))
    assert task.eval().loss((images, targets)).item() < 0.5 * first
    assert lightning.callback_metrics["val/top1"] == 1


def test_per_class_accuracies_add_up_to_the_total():
    torch.manual_seed(0)
    names = ["ant", "bee", "cat", "dog"]
    task = Classification(config(), label_names=names)
    images, _ = random_pairs(14).tensors
    targets = torch.tensor([0] * 7 + [1] * 5 + [2] * 2)
    loader = DataLoader(TensorDataset(images, targets), batch_size=4)
    lightning = trainer()
    for _ in range(2):  # the second evaluation forgets the first
        (metrics,) = lightning.validate(task, loader, verbose=False)
        rows = task.per_class()
        assert [row["class"] for row in rows] == names
        assert [row["images"] for row in rows] == [7, 5, 2, 0]
        assert rows[3]["accuracy"] is None
        right = sum(row["images"] * row["accuracy"] for row in rows[:3])
        assert metrics["val/top1"] == pytest.approx(right / 14)
    with torch.no_grad():
        logits = task.eval()(images)
    assert metrics["val/top1"] == pytest.approx((logits.argmax(1) == targets).float().mean().item())
    assert metrics["val/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-4)
    assert metrics["val/top5"] == pytest.approx(1)


def test_the_confusion_matrix_is_drawn(tmp_path):
    task = Classification(config(), num_classes=3)
    data = random_pairs(6, 3)
    trainer().validate(task, DataLoader(data, batch_size=6), verbose=False)
    task.draw(tmp_path)
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 100


def test_a_model_of_ones_own():
    model = isotropic(img_size=16, patch_size=4, embed_dim=16, depth=2, spectral_depth=1, num_heads=2, num_classes=3)
    task = Classification(config(), model=model)
    assert task.model is model
    data = random_pairs(4, 3, size=16)
    trainer(steps=1).fit(task, DataLoader(data, batch_size=4))


@given(st.integers(1, 4096), st.integers(1, 64), st.floats(1e-6, 1), st.integers(1, 4096))
def test_the_learning_rate_follows_the_global_batch(batch, processes, lr, base):
    settings = RunConfig(batch_size=batch, lr=lr, lr_base_batch=base)
    assert settings.scaled_lr(processes) == pytest.approx(lr * batch * processes / base)
    assert dataclasses.replace(settings, lr_base_batch=None).scaled_lr(processes) == lr


@given(st.integers(1, 400))
def test_the_default_warm_up_is_five_epochs_or_a_fifth(epochs):
    assert RunConfig(epochs=epochs).warmup() == (5 if epochs >= 25 else epochs / 5)
    assert RunConfig(epochs=epochs, warmup_epochs=0).warmup() == 0
    assert RunConfig(epochs=epochs, warmup_epochs=2.5).warmup() == 2.5


@pytest.mark.parametrize("sched", ["cosine", "step", "poly", "tanh"])
def test_the_schedule_warms_up_and_falls(sched):
    rates = []

    class Spy(Classification):
        def on_train_batch_start(self, batch, batch_idx):
            rates.append(self.optimizers().param_groups[0]["lr"])

    settings = config(sched=sched, epochs=10, lr=1e-3, warmup_epochs=2, warmup_lr=1e-6, min_lr=1e-5, batch_size=4)
    trainer(epochs=10).fit(Spy(settings, num_classes=10), DataLoader(random_pairs(8), batch_size=4))
    assert len(rates) == 20
    assert rates[0] == pytest.approx(1e-6)
    assert rates[:4] == sorted(rates[:4])
    assert max(rates) <= 1e-3 * (1 + 1e-6)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("by_epoch", [False, True])
def test_a_schedule_by_epochs_has_one_rate_an_epoch(by_epoch, accumulate):
    rates = []

    class Spy(Classification):
        def on_before_optimizer_step(self, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    given = {"opt": "sgd", "lr": 0.1, "warmup_epochs": 1, "warmup_lr": 0.0, "min_lr": 0.0, "warmup_prefix": True}
    settings = config(sched_by_epoch=by_epoch, epochs=3, accumulate=accumulate, **given)
    whole = trainer(epochs=3)
    whole.accumulate_grad_batches = accumulate
    whole.fit(Spy(settings, num_classes=10), DataLoader(random_pairs(8 * accumulate), batch_size=2))
    assert rates[::4] == pytest.approx([0.0, 0.1, 0.05])
    assert len(rates) == 12
    same = [rate for rate in rates[::4] for _ in range(4)]
    assert (rates == same) == by_epoch


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"opt": "no_such_optimizer"}, "no_such_optimizer"),
        ({"sched": "no_such_schedule"}, "no_such_schedule"),
        ({"sched": "plateau"}, "plateau"),
    ],
)
def test_a_wrong_optimiser_or_schedule_is_named(changes, word):
    task = Classification(config(**changes), num_classes=10)
    with pytest.raises(FreqFormerError, match=word) as caught:
        trainer(steps=1).fit(task, DataLoader(random_pairs(4), batch_size=4))
    assert len(str(caught.value).splitlines()) == 1


def test_a_schedule_that_an_error_recommends_exists():
    with pytest.raises(FreqFormerError) as caught:
        trainer(steps=1).fit(
            Classification(config(sched="nonsense"), num_classes=10), DataLoader(random_pairs(4), batch_size=4)
        )
    for sched in str(caught.value).rpartition("choose one of ")[2].split(", "):
        task = Classification(config(sched=sched), num_classes=10)
        trainer(steps=1).fit(task, DataLoader(random_pairs(4), batch_size=4))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_a_negative_mixing_is_named(name):
    with pytest.raises(FreqFormerError, match=name):
        Classification(config(**{name: -1.0}), num_classes=10)


def test_a_run_config_belongs_to_no_task():
    with pytest.raises(TypeError, match="ClassificationConfig"):
        RunConfig().build()


@pytest.fixture
def miniature(tmp_path):
    """A folder data set: 2 classes, 3 training images and 1 validation image each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for name in ("ant", "bee"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path


def test_build_makes_the_task_and_its_samples(miniature):
    settings = config(data_set="FOLDER", data_path=str(miniature), input_size=(24, 40), drop_path=0.2, num_workers=0)
    task, train, val = settings.build()
    assert task.label_names == ["ant", "bee"]
    assert task.model.num_classes == 2
    assert task.model.img_size == (24, 40)
    assert (len(train), len(val)) == (6, 2)
    assert sorted(train[(0, i)]["target"] for i in range(6)) == [0, 0, 0, 1, 1, 1]
    assert [val[i]["target"] for i in range(2)] == [0, 1]
    for sample in (train[(0, 1)], val[1]):
        assert sample["image"].shape == (3, 24, 40)
        assert sample["image"].isfinite().all()
        assert sample["index"] == 1
    # Augmentation is a function of seed, epoch and index; evaluation has none.
    assert torch.equal(train[(0, 1)]["image"], train[(0, 1)]["image"])
    assert not torch.equal(train[(0, 1)]["image"], train[(1, 1)]["image"])
    assert torch.equal(val[1]["image"], val[1]["image"])
    other = dataclasses.replace(settings, seed=1).build()[1]
    assert not torch.equal(train[(0, 1)]["image"], other[(0, 1)]["image"])
    trainer(steps=2).fit(task, DataLoader([train[(0, i)] for i in range(6)], batch_size=3), DataLoader(val))
    assert task.confusion.confmat.sum() == 2


def test_build_starts_from_given_weights(miniature, tmp_path_factory):
    source = Classification(config(), num_classes=10).model
    weights = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(source.state_dict(), weights)
    task, _, _ = config(data_set="FOLDER", data_path=str(miniature), finetune=str(weights)).build()
    assert torch.equal(task.model.stem.proj.weight, source.stem.proj.weight)
    assert task.model.head.weight.shape == (2, 32)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"arch": "test_freqformr"}, "test_freqformer"),
        ({"finetune": "nowhere.pth"}, "nowhere.pth"),
        ({"data_set": "FOLDERS"}, "FOLDERS"),
        ({"model_args": {"colour": 1}}, "colour"),
    ],
)
def test_what_cannot_be_built_is_named(miniature, changes, word):
    settings = {"data_set": "FOLDER", "data_path": str(miniature), **changes}
    with pytest.raises(FreqFormerError, match=word) as caught:
        config(**settings).build()
    assert len(str(caught.value).splitlines()) == 1


def test_the_description_is_plain_and_complete():
    task = Classification(config(input_size=(24, 40), crop_pct=0.8), label_names=["ant", "bee"])
    said = task.describe()
    assert said["architecture"] == "test_freqformer"
    assert said["num_classes"] == 2
    assert said["model_args"]["img_size"] == [24, 40]
    assert said["label_names"] == ["ant", "bee"]
    assert said["pretrained_cfg"]["input_size"] == [3, 24, 40]
    assert said["pretrained_cfg"]["crop_pct"] == 0.8
    assert said["pretrained_cfg"]["crop_mode"] == "center"
    squashed = Classification(config(resize="squash"), label_names=["ant", "bee"]).describe()["pretrained_cfg"]
    assert (squashed["crop_pct"], squashed["crop_mode"]) == (1.0, "squash")


@pytest.mark.parametrize(("resize", "kept"), [("random", "squash"), ("crop", "center"), ("squash", "squash")])
def test_a_models_own_squashing_gives_way_to_a_crop_alone(resize, kept):
    cfg = {"input_size": (3, 32, 32), "crop_pct": 0.9, "crop_mode": "squash"}
    found = preprocessing(config(resize=resize), cfg)
    assert (found["crop_mode"], found["crop_pct"]) == (kept, 1.0 if resize == "squash" else 0.9)


class Numbered:
    """Images that are told apart by their numbers."""

    def name(self, index):
        return str(index)


def test_examples_are_kept_of_the_evaluation_that_is_drawn_alone(tmp_path):
    task = Classification(config(**OFF), num_classes=10)
    task.val = Numbered()
    loader = DataLoader(Dicts(random_pairs(8)), batch_size=4)
    fit = trainer()
    fit.fit(task, loader, loader)
    assert task.counts.sum() == 8
    assert [examples for _, examples in task._examples()] == [[], []]
    fit.validate(task, loader, verbose=False)
    assert [len(examples) for _, examples in task._examples()] == [4, 4]


@cache
def network(classes):
    return Classification(config(**OFF), num_classes=classes)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_most_confused_pairs_are_those_of_the_largest_counts(data):
    classes = data.draw(st.integers(2, 8))
    counts = np.array(data.draw(st.lists(st.integers(0, 4), min_size=classes**2, max_size=classes**2)))
    task = network(classes)
    task.counts = torch.from_numpy(counts).reshape(classes, classes)
    pairs = task.confusions()
    wrong = counts.reshape(classes, classes).copy()
    np.fill_diagonal(wrong, 0)
    assert [row["images"] for row in pairs] == sorted(wrong[wrong > 0].tolist(), reverse=True)[:20]
    assert all(wrong[int(row["true"]), int(row["predicted"])] == row["images"] for row in pairs)
    assert len({(row["true"], row["predicted"]) for row in pairs}) == len(pairs)
