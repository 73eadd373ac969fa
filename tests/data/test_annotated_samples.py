"""Samples of images with annotations: keys, seeds, what cannot be read, batches."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from freqformer.data import AnnotatedSamples, EpochBatchSampler, UnreadableImage


class Pictures:
    """A source whose i-th image is the number i, of a size of its own; some are bad."""

    root = None

    def __init__(self, count, bad=()):
        self.count, self.bad = count, set(bad)

    def __len__(self):
        return self.count

    def name(self, i):
        return f"picture {i}"

    def load(self, i):
        if i in self.bad:
            raise UnreadableImage(self.name(i), "it is bad")
        return torch.full((3, 2 + i % 3, 4), i, dtype=torch.uint8), {"boxes": torch.full((i % 2, 4), float(i))}


def noisy(image, target):
    return image, {**target, "noise": torch.rand(3)}


def test_a_sample_has_what_the_transform_gives():
    sample = AnnotatedSamples(Pictures(5), noisy)[3]
    assert sample.keys() == {"image", "target", "index"}
    assert sample["index"] == 3
    assert (sample["image"] == 3).all()
    assert sample["target"]["boxes"].tolist() == [[3.0] * 4]


keys = st.tuples(st.integers(0, 50), st.integers(0, 9), st.integers(0, 3))


@settings(max_examples=60, deadline=None)
@given(keys, keys, st.integers(0, 5), st.sets(st.integers(0, 9), max_size=6))
def test_training_is_a_function_of_seed_and_key(key, other, seed, bad):
    samples = AnnotatedSamples(Pictures(10, bad), noisy, seed)
    first = samples[key]
    state = torch.get_rng_state()
    torch.manual_seed(99)
    samples[other]
    again = pickle.loads(pickle.dumps(samples))[key]
    torch.set_rng_state(state)
    assert torch.equal(first["target"]["noise"], again["target"]["noise"])
    assert first["index"] == again["index"]
    assert first.get("bad") == again.get("bad")
    if key != other:
        assert not torch.equal(samples[other]["target"]["noise"], first["target"]["noise"])
    assert torch.equal(samples[key[:2]]["target"]["noise"], samples[(*key[:2], 0)]["target"]["noise"])


def test_the_global_generator_is_left_alone():
    samples = AnnotatedSamples(Pictures(4), noisy)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    samples[1, 2, 0]
    assert torch.equal(torch.rand(2), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.data())
def test_any_part_may_be_bad(count, data):
    bad = data.draw(st.sets(st.integers(0, count - 1)))
    samples = AnnotatedSamples(Pictures(count, bad), noisy)
    batch = samples.collate([samples[i] for i in range(count)])
    assert batch["index"] == [i for i in range(count) if i not in bad]
    assert [int(image[0, 0, 0]) for image in batch["image"]] == batch["index"]
    assert len(batch["target"]) == len(batch["image"])
    assert batch.get("bad", []) == [(f"picture {i}", "it is bad") for i in sorted(bad)]
    trained = samples.collate([samples[3, i] for i in range(count)])
    assert not set(trained["index"]) & bad
    assert ("bad" in trained) == bool(bad)
    if len(bad) <= count // 2:
        assert len(trained["image"]) == count  # 20 draws in a row miss by one in a million.
    if len(bad) == count:
        assert trained["image"] == trained["target"] == trained["index"] == []


def test_a_batch_is_lists_of_different_sizes():
    samples = AnnotatedSamples(Pictures(6), noisy)
    batch = samples.collate([samples[i] for i in range(6)])
    assert {image.shape for image in batch["image"]} == {(3, 2, 4), (3, 3, 4), (3, 4, 4)}
    assert "bad" not in batch


@pytest.mark.slow
def test_workers_and_a_new_start_change_nothing():
    samples = AnnotatedSamples(Pictures(11, {4}), noisy, seed=7)

    def batches(workers, done=0):
        sampler = EpochBatchSampler(11, 3, 7, lambda: (2, done), rank=0, world_size=1, repeats=2)
        loader = DataLoader(samples, batch_sampler=sampler, collate_fn=samples.collate, num_workers=workers)
        return [(batch["index"], [target["noise"].tolist() for target in batch["target"]]) for batch in loader]

    whole = batches(0)
    assert batches(2) == whole
    assert batches(0, done=2) == whole[2:]
