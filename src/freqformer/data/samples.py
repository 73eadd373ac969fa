"""The data set that a DataLoader reads: images through a transform, seeded sample by sample."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from freqformer.data.images import Images, UnreadableImage
from freqformer.data.randomness import mix, seeded

# Of images drawn at random so many in a row are bad only where nearly all are.
_ATTEMPTS = 20


class Samples(Dataset[dict[str, Any]]):
    """Transformed samples, each a dict of ``image``, ``target`` and ``index``.

    A key is an index (evaluation) or a pair ``(epoch, index)`` (training), as ``EpochBatchSampler`` yields.
    For a pair the transform's randomness is a pure function of seed, epoch and index.

    Where images cannot be read the sample also has ``bad``, a list of (name, reason). In training another image,
    drawn as a pure function of seed, epoch, index and attempt, takes the place, so that a batch keeps its size;
    in evaluation the sample has nothing but ``bad``. ``collate`` makes batches of such samples.

    Args:
        images: the labelled images.
        transform: from an RGB image to a tensor (3, H, W).
        seed: the run's seed.
    """

    def __init__(self, images: Images, transform: Callable[[Image.Image], Tensor], seed: int = 0) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    @property
    def root(self) -> str | None:
        """The folder that the images lie in, where they do."""
        return self.images.root

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        image, chosen, bad = self._load(epoch, index)
        if image is None:
            return {"bad": bad}
        if epoch is None:
            tensor = self.transform(image)
        else:
            # The last number is the repeat: with repeated augmentation an image has several a batch.
            with seeded(mix(self.seed, epoch, index, 0)):
                tensor = self.transform(image)
        sample = {"image": tensor, "target": int(self.images.targets[chosen]), "index": chosen}
        return {**sample, "bad": bad} if bad else sample

    def _load(self, epoch: int | None, index: int) -> tuple[Image.Image | None, int, list[tuple[str, str]]]:
        """The image that a key means, or in training one in its place; its index; and which were bad."""
        bad: list[tuple[str, str]] = []
        chosen = index
        for attempt in range(1, 2 if epoch is None else 1 + _ATTEMPTS):
            try:
                return self.images.load(chosen), chosen, bad
            except UnreadableImage as error:
                bad.append((error.name, error.reason))
            if epoch is not None:
                chosen = mix(self.seed, epoch, index, attempt) % len(self.images)
        return None, index, bad


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of those samples that have an image.

    Args:
        samples: as ``Samples`` gives them.

    Returns:
        A dict of tensors with the batch as first axis, and, where images could not be read, ``bad``: a list of
        (name, reason). When no sample has an image, ``image``, ``target`` and ``index`` are empty, of shape (0,).
    """
    bad = [one for sample in samples for one in sample.get("bad", ())]
    if not bad:
        return default_collate(samples)
    sound = [{key: value for key, value in sample.items() if key != "bad"} for sample in samples if "image" in sample]
    nothing = {"image": torch.empty(0), "target": torch.empty(0, dtype=torch.int64)}
    batch = default_collate(sound) if sound else {**nothing, "index": torch.empty(0, dtype=torch.int64)}
    return {**batch, "bad": bad}
