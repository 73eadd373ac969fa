"""Data sets, their samples' transforms, and the order and randomness of training."""

from freqformer.data.datasets import DATA_SETS, open_images
from freqformer.data.folders import EXTENSIONS
from freqformer.data.images import Images, UnreadableImage, decode, printable
from freqformer.data.randomness import mix, seeded
from freqformer.data.sampler import EpochBatchSampler, epoch_order
from freqformer.data.samples import Samples, collate
from freqformer.data.transforms import eval_transform, train_transform

__all__ = [
    "DATA_SETS",
    "EXTENSIONS",
    "EpochBatchSampler",
    "Images",
    "Samples",
    "UnreadableImage",
    "collate",
    "decode",
    "epoch_order",
    "eval_transform",
    "mix",
    "open_images",
    "printable",
    "seeded",
    "train_transform",
]
