"""Data sets, their samples' transforms, and the order and randomness of training."""

from freqformer.data.coco import Instances, open_instances
from freqformer.data.datasets import DATA_SETS, SweepSplits, open_images, splits_of, sweep_splits
from freqformer.data.detection_transforms import detection_transform, shortest_edge
from freqformer.data.device import DeviceAugmentation
from freqformer.data.folders import EXTENSIONS
from freqformer.data.images import Images, UnreadableImage, decode, printable
from freqformer.data.label_maps import LabelMaps, Region, labels_in
from freqformer.data.masks import IGNORED
from freqformer.data.overlays import colour_mask, overlay
from freqformer.data.randomness import mix, seeded
from freqformer.data.sampler import EpochBatchSampler, epoch_order
from freqformer.data.samples import AnnotatedSamples, Samples, Seeded, collate
from freqformer.data.scenes import Scenes, open_scenes
from freqformer.data.segmentation_transforms import segmentation_eval_transform, segmentation_transform
from freqformer.data.transforms import eval_transform, train_transform, whole_transform
from freqformer.data.vtab import VTAB_GROUPS, VTAB_TASKS

__all__ = [
    "DATA_SETS",
    "EXTENSIONS",
    "IGNORED",
    "VTAB_GROUPS",
    "VTAB_TASKS",
    "AnnotatedSamples",
    "DeviceAugmentation",
    "EpochBatchSampler",
    "Images",
    "Instances",
    "LabelMaps",
    "Region",
    "Samples",
    "Scenes",
    "Seeded",
    "SweepSplits",
    "UnreadableImage",
    "collate",
    "colour_mask",
    "decode",
    "detection_transform",
    "epoch_order",
    "eval_transform",
    "labels_in",
    "mix",
    "open_images",
    "open_instances",
    "open_scenes",
    "overlay",
    "printable",
    "seeded",
    "segmentation_eval_transform",
    "segmentation_transform",
    "shortest_edge",
    "splits_of",
    "sweep_splits",
    "train_transform",
    "whole_transform",
]
