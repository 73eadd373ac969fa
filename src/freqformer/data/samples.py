"""The data sets that a DataLoader reads: images through a transform, seeded sample by sample."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from freqformer.data.images import Images, UnreadableImage
from freqformer.data.label_maps import LabelMaps, Region
from freqformer.data.randomness import mix, seeded

# Of images drawn at random so many in a row are bad only where nearly all are.
_ATTEMPTS = 20


class Seeded(Dataset[dict[str, Any]]):
    """Samples of a source, seeded one by one; subclasses say what a sample is of what the source gives.

    A key is an index (evaluation), or ``(epoch, index, repeat)`` (training), as ``EpochBatchSampler`` yields; the
    repeat may be left out. In training what is random is a pure function of seed and key.

    Where the source raises UnreadableImage the sample also has ``bad``, a list of (name, reason). In training another
    one, drawn as a pure function of seed, epoch, index and attempt, takes the place, so that a batch keeps its size;
    in evaluation the sample has nothing but ``bad``. ``collate`` makes batches of such samples.

    Args:
        images: has a length, ``load(i)``, ``name(i)`` and ``root``, as ``Images`` has.
        seed: the run's seed.
    """

    def __init__(self, images: Any, seed: int = 0) -> None:
        self.images, self.seed = images, seed

    @abstractmethod
    def sample(self, loaded: Any, index: int, *, training: bool) -> dict[str, Any]:
        """A sample of what the source gave for an index."""

    @abstractmethod
    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch of those samples that have an image."""

    @property
    def root(self) -> str | None:
        """The folder that the images lie in, where they do."""
        return self.images.root

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | tuple[int, ...]) -> dict[str, Any]:
        epoch, meant, repeat = (*key, 0)[:3] if isinstance(key, tuple) else (None, key, 0)
        loaded, index, bad = self._load(epoch, meant)
        if loaded is None:
            return {"bad": bad}
        if epoch is None:
            sample = self.sample(loaded, index, training=False)
        else:
            with seeded(mix(self.seed, epoch, meant, repeat)):
                sample = self.sample(loaded, index, training=True)
        return {**sample, "bad": bad} if bad else sample

    def _load(self, epoch: int | None, index: int) -> tuple[Any, int, list[tuple[str, str]]]:
        """What a key means, or in training what is in its place; its index; and which were bad."""
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


class Samples(Seeded):
    """Transformed labelled images, each a dict of ``image``, ``target`` and ``index``.

    With label maps a training sample also has ``label_map``, scores and classes (2, K, h, w), and ``region``, the part
    of it that the image shows (`Region.box`, (4,)).

    Args:
        images: the labelled images.
        transform: from an RGB image to a tensor (3, H, W); with label maps it also takes and returns a `Region`.
        seed: the run's seed.
        label_maps: the maps of the images.
    """

    def __init__(
        self, images: Images, transform: Callable[..., Any], seed: int = 0, label_maps: LabelMaps | None = None
    ) -> None:
        super().__init__(images, seed)
        self.transform, self.label_maps = transform, label_maps

    def sample(self, loaded: Any, index: int, *, training: bool) -> dict[str, Any]:
        """The transformed image and its label."""
        target = {"target": int(self.images.targets[index]), "index": index}
        if self.label_maps is None or not training:
            return {"image": self.transform(loaded), **target}
        image, region = self.transform(loaded, Region.whole((loaded.height, loaded.width)))
        label_map = self.label_maps.load(self.images.name(index))
        return {"image": image, **target, "label_map": label_map, "region": region.box}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """See `collate`."""
        return collate(samples)


class AnnotatedSamples(Seeded):
    """Images with annotations that move with them; a dict of ``image`` (3, h, w), ``target`` and ``index``.

    A batch of them has lists of images and targets, since they are of different sizes.

    Args:
        images: its ``load(i)`` gives an RGB image and its target.
        transform: from both to both, the image uint8.
        seed: the run's seed.
    """

    def __init__(self, images: Any, transform: Callable[[Any, Any], tuple[Tensor, Any]], seed: int = 0) -> None:
        super().__init__(images, seed)
        self.transform = transform

    def sample(self, loaded: Any, index: int, *, training: bool) -> dict[str, Any]:
        """The transformed image and target."""
        image, target = self.transform(*loaded)
        return {"image": image, "target": target, "index": index}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Lists of what the samples have, those without an image left out; ``bad`` as `collate` has it."""
        sound = [sample for sample in samples if "image" in sample]
        batch = {key: [sample[key] for sample in sound] for key in ("image", "target", "index")}
        bad = [one for sample in samples for one in sample.get("bad", ())]
        return {**batch, "bad": bad} if bad else batch


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
