"""The data set that a DataLoader reads: images through a transform, seeded sample by sample."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from freqformer.data.images import Images
from freqformer.data.label_maps import LabelMaps, Region
from freqformer.data.randomness import mix, seeded


class Samples(Dataset[dict[str, Any]]):
    """Transformed samples, each a dict of ``image``, ``target`` and ``index``.

    A key is an index (evaluation), or ``(epoch, index, repeat)`` (training), as ``EpochBatchSampler`` yields; the
    repeat may be left out. In training the transform's randomness is a pure function of seed and key.

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
        self.images, self.transform, self.seed, self.label_maps = images, transform, seed, label_maps

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | tuple[int, ...]) -> dict[str, Any]:
        if not isinstance(key, tuple):
            return self._sample(key, self.transform(self.images.load(key)))
        epoch, index, repeat = (*key, 0)[:3]
        image = self.images.load(index)
        with seeded(mix(self.seed, epoch, index, repeat)):
            if self.label_maps is None:
                return self._sample(index, self.transform(image))
            tensor, region = self.transform(image, Region.whole((image.height, image.width)))
        label_map = self.label_maps.load(self.images.name(index))
        return {**self._sample(index, tensor), "label_map": label_map, "region": region.box}

    def _sample(self, index: int, image: Tensor) -> dict[str, Any]:
        return {"image": image, "target": int(self.images.targets[index]), "index": index}
