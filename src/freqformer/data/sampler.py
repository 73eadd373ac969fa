"""The order in which images are trained on: a pure function of seed, epoch, position and rank."""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler

from freqformer.data.randomness import mix
from freqformer.errors import FreqFormerError


def epoch_order(n: int, seed: int, epoch: int) -> torch.Tensor:
    """Shuffle the indices of one epoch without touching any global generator.

    Args:
        n: number of images.
        seed: the run's seed.
        epoch: the epoch's number.

    Returns:
        A permutation of 0..n-1, int64 of shape (n,).
    """
    return torch.randperm(n, generator=torch.Generator().manual_seed(mix(seed, epoch)))


class EpochBatchSampler(Sampler[list[tuple[int, int, int]]]):
    """Yields the batches that are left of an epoch, each a list of ``(epoch, index, repeat)``.

    A global batch is a run of ``batch_size * world_size`` consecutive images of ``epoch_order``, of which
    rank r takes the r-th slice: processes share the batches that one process with the larger batch would
    see. The ragged last batch is dropped. ``len`` is the number of batches of a full epoch.

    With repeated augmentation (Hoffer et al., "Augment Your Batch", CVPR 2020; DeiT's variant) each image stands
    ``repeats`` times in a row, so an epoch of as many batches has the first n / repeats images of its order. A
    global batch first has its images' first repeats, then their second ones, and so on: with at least as many
    processes as repeats no process gets two of one image, and within a batch they do not meet in mixup.

    Args:
        n: number of images in the training split.
        batch_size: images in a batch of one process.
        seed: the run's seed.
        position: asked once at each start of iteration for (epoch, number of its batches to skip).
        rank: number of this process.
        world_size: number of processes.
        repeats: how often an image is taken, augmented anew each time.

    Raises:
        FreqFormerError: the split is smaller than one global batch, or a number is out of its range.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        position: Callable[[], tuple[int, int]],
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
    ) -> None:
        if repeats < 1:
            raise FreqFormerError(f"an image is taken at least once, not {repeats} times; raise --aug-repeats")
        if batch_size < 1:
            raise FreqFormerError(f"the batch size must be at least 1, not {batch_size}; raise --batch-size")
        if not 0 <= rank < world_size:
            raise FreqFormerError(f"rank {rank} is not one of {world_size} processes; count ranks from 0")
        if n < batch_size * world_size:
            raise FreqFormerError(
                f"the training split has {n} images, fewer than one batch of {batch_size * world_size}; "
                "lower --batch-size"
            )
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.position, self.rank, self.world_size, self.repeats = position, rank, world_size, repeats

    def __len__(self) -> int:
        return self.n // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        epoch, start_batch = self.position()
        order = epoch_order(self.n, self.seed, epoch)
        size = self.batch_size * self.world_size
        for batch in range(start_batch, len(self)):
            places = torch.arange(batch * size, (batch + 1) * size)
            # Without repeats nothing moves.
            places = places[torch.argsort(places % self.repeats, stable=True)]
            own = places[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
            indices, repeats = order[own // self.repeats].tolist(), (own % self.repeats).tolist()
            yield [(epoch, index, repeat) for index, repeat in zip(indices, repeats, strict=True)]
