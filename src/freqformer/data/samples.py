"""The data set that a DataLoader reads: images through a transform, seeded sample by sample."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from freqformer.data.images import Images, UnreadableImage
from freqformer.data.label_maps import LabelMaps, Region
from freqformer.data.randomness import mix, seeded

# Of images drawn at random so many in a row are bad only where nearly all are.
_ATTEMPTS = 20


class Samples(Dataset[dict[str, Any]]):
    """Transformed samples, each a dict of ``image``, ``target`` and ``index``.

    A key is an index (evaluation), or ``(epoch, index, repeat)`` (training), as ``EpochBatchSampler`` yields; the
    repeat may be left out. In training the transform's randomness is a pure function of seed and key.

    With label maps a training sample also has ``label_map``, scores and classes (2, K, h, w), and ``region``, the part
    of it that the image shows (`Region.box`, (4,)).

    Where images cannot be read the sample also has ``bad``, a list of (name, reason). In training another image,
    drawn as a pure function of seed, epoch, index and attempt, takes the place, so that a batch keeps its size;
    in evaluation the sample has nothing but ``bad``. ``collate`` makes batches of such samples.

    Args:
        images: the labelled images.
        transform: from an RGB image to a tensor (3, H, W); with label maps it also takes and returns a `Region`.
        seed: the run's seed.
        label_maps: the maps of the images.
    """

    def __init__(
        self, images: Images, transform: Callable[..., Any], seed: int = 0, label_maps: LabelMaps | None = None
    ) -> None:
        self.images, self.transform, self.seed, self.label_maps = images, transform, seed, label_maps

    @property
    def root(self) -> str | None:
        """The folder that the images lie in, where they do."""
        return self.images.root

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | tuple[int, ...]) -> dict[str, Any]:
        if not isinstance(key, tuple):
            image, index, bad = self._load(None, key)
            return {"bad": bad} if image is None else self._sample(index, self.transform(image), bad)
        epoch, meant, repeat = (*key, 0)[:3]
        image, index, bad = self._load(epoch, meant)
        if image is None:
            return {"bad": bad}
        with seeded(mix(self.seed, epoch, meant, repeat)):
            if self.label_maps is None:
                return self._sample(index, self.transform(image), bad)
            tensor, region = self.transform(image, Region.whole((image.height, image.width)))
        label_map = self.label_maps.load(self.images.name(index))
        return {**self._sample(index, tensor, bad), "label_map": label_map, "region": region.box}

    def _sample(self, index: int, image: Tensor, bad: list[tuple[str, str]]) -> dict[str, Any]:
        sample = {"image": image, "target": int(self.images.targets[index]), "index": index}
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
        (name, reason). Where no sample has an image, ``image``, ``target`` and ``index`` are empty, of shape (0,).
    """
    bad = [one for sample in samples for one in sample.get("bad", ())]
    if samples and not bad:
        return default_collate(samples)
    sound = [{key: value for key, value in sample.items() if key != "bad"} for sample in samples if "image" in sample]
    nothing = {"image": torch.empty(0), "target": torch.empty(0, dtype=torch.int64)}
    batch = default_collate(sound) if sound else {**nothing, "index": torch.empty(0, dtype=torch.int64)}
    return {**batch, "bad": bad} if bad else batch
