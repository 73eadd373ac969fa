import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freqformer.data import EpochBatchSampler, epoch_order
from freqformer.errors import FreqFormerError

SEEDS = st.integers(0, 2**63 - 1)


def batches(n, batch_size, seed, epoch=0, start=0, **kwargs):
    return list(EpochBatchSampler(n, batch_size, seed, lambda: (epoch, start), **kwargs))


@given(st.integers(0, 200), SEEDS, st.integers(0, 1000))
def test_order_is_a_permutation_and_pure(n, seed, epoch):
    state = torch.get_rng_state()
    order = epoch_order(n, seed, epoch)
    assert sorted(order.tolist()) == list(range(n))
    assert order.dtype == torch.int64
    assert torch.equal(order, epoch_order(n, seed, epoch))
    assert torch.equal(torch.get_rng_state(), state)


def test_order_differs_by_epoch_and_seed():
    orders = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@given(st.data(), st.integers(1, 9), st.integers(0, 60), SEEDS, st.integers(0, 50))
def test_resuming_gives_the_rest_of_the_epoch(data, batch_size, extra, seed, epoch):
    n = batch_size + extra
    full = batches(n, batch_size, seed, epoch)
    start = data.draw(st.integers(0, len(full) + 3))
    assert batches(n, batch_size, seed, epoch, start) == full[start:]
    assert len(EpochBatchSampler(n, batch_size, seed, lambda: (epoch, start))) == len(full) == n // batch_size
    assert {e for batch in full for e, *_ in batch} == {epoch}
    indices = [i for batch in full for _, i, _ in batch]
    assert indices == epoch_order(n, seed, epoch)[: len(indices)].tolist()


@given(st.integers(1, 5), st.integers(2, 4), st.integers(0, 60), SEEDS)
def test_ranks_share_the_batches_of_one_process(batch_size, world_size, extra, seed):
    n = batch_size * world_size + extra
    whole = batches(n, batch_size * world_size, seed)
    ranks = [batches(n, batch_size, seed, rank=r, world_size=world_size) for r in range(world_size)]
    assert [[pair for part in parts for pair in part] for parts in zip(*ranks, strict=True)] == whole


def test_position_is_asked_once_at_each_start():
    positions = iter([(0, 1), (1, 0)])
    sampler = EpochBatchSampler(6, 2, 3, lambda: next(positions))
    assert [e for batch in sampler for e, *_ in batch] == [0] * 4
    assert [e for batch in sampler for e, *_ in batch] == [1] * 6


def test_errors():
    with pytest.raises(FreqFormerError, match=r"has 7 images, fewer than one batch of 8; lower --batch-size"):
        EpochBatchSampler(7, 4, 0, lambda: (0, 0), world_size=2)
    with pytest.raises(FreqFormerError, match="at least 1"):
        EpochBatchSampler(7, 0, 0, lambda: (0, 0))
    with pytest.raises(FreqFormerError, match="rank 2"):
        EpochBatchSampler(7, 1, 0, lambda: (0, 0), rank=2, world_size=2)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(0, 60), SEEDS, st.integers(0, 9))
def test_repeats_are_the_first_images_of_the_order_each_as_often(batch_size, world, repeats, extra, seed, epoch):
    size = batch_size * world
    n = size + extra
    ranks = [batches(n, batch_size, seed, epoch, rank=r, world_size=world, repeats=repeats) for r in range(world)]
    assert {len(rank) for rank in ranks} == {n // size}
    assert {len(batch) for rank in ranks for batch in rank} == {batch_size}
    order = epoch_order(n, seed, epoch).tolist()
    expected = [(epoch, index, repeat) for index in order for repeat in range(repeats)][: n // size * size]
    seen = [[key for rank in ranks for key in rank[i]] for i in range(n // size)]
    for i, keys in enumerate(seen):  # a global batch is a run of the repeated order
        assert sorted(keys) == sorted(expected[i * size : (i + 1) * size])
    if repeats == 1:
        assert [index for keys in seen for _, index, _ in keys] == order[: len(expected)]


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 3), st.integers(0, 60), SEEDS)
def test_a_process_gets_no_two_repeats_of_an_image(batch_size, repeats, more, extra, seed):
    world = repeats + more
    for rank in range(world):
        found = batches(batch_size * world + extra, batch_size, seed, rank=rank, world_size=world, repeats=repeats)
        assert all(len({index for _, index, _ in batch}) == batch_size for batch in found)


@given(st.integers(2, 40), st.integers(2, 5), st.integers(0, 60), SEEDS)
def test_repeats_of_an_image_do_not_meet_in_mixup(images, repeats, extra, seed):
    batch_size = images * repeats
    for batch in batches(batch_size + extra, batch_size, seed, repeats=repeats):
        indices = [index for _, index, _ in batch]
        assert all(here != there for here, there in zip(indices, [*indices[1:], indices[0]], strict=True))


@given(st.data(), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(0, 60), SEEDS)
def test_resuming_with_repeats_gives_the_rest_of_the_epoch(data, batch_size, world_size, repeats, extra, seed):
    n = batch_size * world_size + extra
    rank = data.draw(st.integers(0, world_size - 1))
    settings = {"rank": rank, "world_size": world_size, "repeats": repeats}
    full = batches(n, batch_size, seed, **settings)
    start = data.draw(st.integers(0, len(full) + 1))
    assert batches(n, batch_size, seed, 0, start, **settings) == full[start:]
