"""Teachers, token labels, repeats and augmentation on the device in whole runs, stopped and resumed."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from freqformer.data import open_images
from freqformer.data.label_maps import Description, map_path, write_map
from freqformer.engine import RESUME_LAST, Interrupted, run
from freqformer.models import SpectralNet
from freqformer.tasks import Classification


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Label maps of the digits, which say what the images are."""
    folder = tmp_path_factory.mktemp("maps")
    Description("nobody", "none", 10, 2, [4, 4], [8, 8]).write(folder)
    images = open_images("DIGITS", None, "train")
    generator = torch.Generator().manual_seed(0)
    for i, target in enumerate(images.targets.tolist()):
        best = torch.stack([torch.full((4, 4), target), torch.full((4, 4), (target + 1) % 10)])
        scores = torch.rand(2, 4, 4, generator=generator) + torch.tensor([6.0, 1.0]).view(2, 1, 1)
        write_map(map_path(folder, None, images.name(i)), scores, best)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), path)
    return {"teacher_model": "test_resnet", "teacher_path": str(path), "distillation_type": "soft"}


PYRAMID = {
    "arch": "test_spectformer_h",
    "token_label": True,
    "input_size": 64,
    "limit_train": 32,
    "batch_size": 8,
    "epochs": 1,
}


def resumed(tiny, signal_at, folder, step, **changes):
    disarm = signal_at(step)
    with pytest.raises(Interrupted):
        run(tiny(folder, **changes))
    disarm()
    return run(tiny(folder, resume=RESUME_LAST, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("technique", ["token labels", "label maps", "distillation", "repeats", "on device"])
def test_a_run_is_resumed_bit_for_bit(tiny, tmp_path, signal_at, left_behind, maps, teacher, technique):
    changes = {
        "token labels": PYRAMID,
        "label maps": {**PYRAMID, "token_label_data": str(maps)},
        "distillation": {"epochs": 1, "limit_train": 48, **teacher},
        "repeats": {"epochs": 2, "limit_train": 48, "aug_repeats": 3},
        "on device": {"epochs": 1, "limit_train": 48, "augment_on_device": True, "input_size": 16},
    }[technique]
    run(tiny(tmp_path / "whole", **changes))
    resumed(tiny, signal_at, tmp_path / "stopped", 1, **changes)
    left, right = left_behind(tmp_path / "whole"), left_behind(tmp_path / "stopped")
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []


@pytest.mark.slow
def test_a_checkpoint_knows_nothing_of_the_teacher(tiny, tmp_path, teacher):
    settings = {"epochs": 1, "limit_train": 32}
    run(tiny(tmp_path / "taught", **settings, **teacher))
    run(tiny(tmp_path / "alone", **settings))
    taught, alone = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("taught", "alone")
    )
    for part in ("state_dict", "current_model_state"):
        assert taught[part].keys() == alone[part].keys()
    assert taught["description"] == alone["description"]
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (taught, alone)]
    assert states[0].keys() == states[1].keys()
    sizes = [(tmp_path / name / "checkpoints/last.ckpt").stat().st_size for name in ("taught", "alone")]
    assert abs(sizes[0] - sizes[1]) < 20_000


def test_repeats_are_trained_on(tiny, tmp_path, monkeypatch):
    seen = []
    original = Classification.training_step

    def hooked(self, batch, batch_idx):
        seen.append((batch["index"].tolist(), batch["image"].clone()))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Classification, "training_step", hooked)
    run(tiny(tmp_path, epochs=1, limit_train=48, aug_repeats=3, reprob=1.0))
    assert len(seen) == 3  # as many steps as without repeats
    indices, images = [i for batch, _ in seen for i in batch], torch.cat([image for _, image in seen])
    assert sorted(indices.count(i) for i in set(indices)) == [3] * 16
    first = [images[place] for place, index in enumerate(indices) if index == indices[0]]
    assert not torch.equal(first[0], first[1])


def test_mixing_tokens_is_for_training_alone(tiny, tmp_path, monkeypatch):
    swaps = []
    original = SpectralNet.forward_features

    def spied(self, x, swap=None):
        swaps.append((self.training, swap is not None))
        return original(self, x, swap)

    monkeypatch.setattr(SpectralNet, "forward_features", spied)
    run(tiny(tmp_path, **PYRAMID))
    assert set(swaps) == {(True, True), (False, False)}


def test_maps_that_are_not_there_are_told_before_anything_is_written(words, refused, tmp_path):
    settings = ["--arch", "test_freqformer_h", "--input-size", "64", "--token-label"]
    (tmp_path / "maps").mkdir()
    for folder, message in ((tmp_path / "none", "no folder of label maps"), (tmp_path / "maps", "no label map")):
        answer = refused(*words(tmp_path / "run", *settings, "--token-label-data", folder))
        assert message in answer
        assert str(folder) in answer
    assert not (tmp_path / "run").exists()


def test_the_papers_flags_are_understood(command, words, tmp_path, maps):
    flags = "--token-label --token-label-size 2 --dense-weight 0.5 --cls-weight 1.0 --input-size 64"
    flags += " --scale 0.2 1.0 --ratio 0.75 1.33 --train-interpolation random --remode const --recount 2 --reprob 0.25"
    flags += " --vflip 0.1 --color-jitter 0.4 --mixup-prob 0.9 --mixup-switch-prob 0.5 --aug-repeats 3"
    answer = command(
        *words(tmp_path / "run", "--arch", "test_spectformer_h", *flags.split(), "--token-label-data", maps)
    )
    assert answer.code == 0, answer
    rows = json.loads((tmp_path / "run/metrics.json").read_text())["epochs"]
    assert rows[0]["train/loss"] > 0


@pytest.mark.slow
def test_a_pyramid_learns_from_the_maps_of_a_teacher_that_was_trained_here(command, class_folders, tmp_path):
    """The commands in a row: train a teacher, let it label, train on its labels, evaluate."""
    data = ["--data-set", "FOLDER", "--data-path", class_folders(), "--num-workers", "0"]
    training = [*data, "--input-size", "64", "--batch-size", "6", "--accelerator", "cpu", "--epochs", "1"]
    teacher = ["--teacher-model", "test_gfnet", "--teacher-path", tmp_path / "teacher"]
    student = [*training, "--arch", "test_freqformer_h", "--train-interpolation", "random"]
    maps = tmp_path / "maps"
    runs = [
        ["train", *training, "--arch", "test_gfnet", "--output-dir", tmp_path / "teacher"],
        ["labelmaps", *data, *teacher, "--device", "cpu", "--top-k", "2", "--output-dir", maps],
        ["train", *student, "--token-label", "--token-label-data", maps, "--output-dir", tmp_path / "run"],
        ["train", *student, *teacher, "--distillation-type", "hard", "--output-dir", tmp_path / "taught"],
    ]
    for run_ in runs:
        answer = command(*run_)
        assert answer.code == 0, answer
    assert len(list((tmp_path / "maps/train").rglob("*.safetensors"))) == 18
