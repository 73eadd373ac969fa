"""The data set that a DataLoader reads: images through a transform, seeded sample by sample."""

from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from freqformer.data.images import Images
from freqformer.data.randomness import mix, seeded


class Samples(Dataset[dict[str, Any]]):
    """Transformed samples, each a dict of ``image``, ``target`` and ``index``.

    A key is an index (evaluation) or a pair ``(epoch, index)`` (training), as ``EpochBatchSampler`` yields.
    For a pair the transform's randomness is a pure function of seed, epoch and index.

    Args:
        images: the labelled images.
        transform: from an RGB image to a tensor (3, H, W).
        seed: the run's seed.
    """

    def __init__(self, images: Images, transform: Callable[[Image.Image], Tensor], seed: int = 0) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        if isinstance(key, tuple):
            epoch, index = key
            image = self.images.load(index)
            # The last number is the repeat: with repeated augmentation an image has several a batch.
            with seeded(mix(self.seed, epoch, index, 0)):
                tensor = self.transform(image)
        else:
            index = key
            tensor = self.transform(self.images.load(index))
        return {"image": tensor, "target": int(self.images.targets[index]), "index": index}
