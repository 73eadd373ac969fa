"""FreqFit's protocol: "Enhancing Parameter-Efficient Fine-Tuning of Vision Transformers through Frequency-Based
Adaptation" (arXiv 2411.19297), whose code is that of Visual Prompt Tuning (ECCV 2022, arXiv 2203.12119)."""

from .base import Settings, recipe

PROTOCOL: Settings = {
    "opt": "sgd",
    "lr": 0.1,
    "weight_decay": 0.01,
    "decay_all": True,
    "warmup_epochs": 5,
    "warmup_lr": 0.0,
    "warmup_prefix": True,
    "min_lr": 0.0,
    "sched_by_epoch": True,
    "clip_grad": None,
    "interpolation": "bilinear",
    "precision": "32-true",
}
"""What both have in common, besides the defaults of `freqformer adapt`.

- lr, weight_decay: the printed line, `bash run.sh cifar100 sup_vitb16_imagenet21k 64 0.1 0.01 0 0 freqfit`, whose 64
  images are the default. So are 100 epochs, a rate that is taken as it is (train.py; the tuning scripts multiply theirs
  by the batch over 256), and no smoothing, mixing or auto-augment, of which train_classifier has none.
- opt: run.sh says sgd, over the adamw of base-finetune.yaml; momentum 0.9 is there and the default here.
- decay_all: make_optimizer spares the last layer's bias alone.
- warmup_epochs: base-finetune.yaml, which cub.yaml and so run.sh builds on.
- sched_by_epoch, warmup_prefix, warmup_lr, min_lr: WarmupCosineSchedule, stepped once an epoch; so the first epoch's
  rate is 0.
- clip_grad: train_classifier does not clip.
- Its networks have no stochastic depth; encoders have none here either, unless --encoder-args says so.
- interpolation: the default of tf.image.resize and of torchvision's Resize.
- precision: there is no autocast.
"""


@recipe("freqfit_vtab", command="adapt")
def vtab() -> Settings:
    """Adaptation to a task of VTAB-1k (any --data-set): 100 epochs of SGD, 64 images a step, the whole image, no
    augmentation.

    tf_dataset.py resizes the whole image to a square (squash) and does nothing else to it (no flips).

    Source: FreqFiT, README "Run experiments", run.sh, configs/base-finetune.yaml, src/solver and
    src/data/datasets/tf_dataset.py.
    """
    return {**PROTOCOL, "resize": "squash", "hflip": 0.0}


@recipe("freqfit_fgvc", command="adapt")
def fgvc() -> Settings:
    """Adaptation to an FGVC data set: 100 epochs of SGD, 64 images a step, random crops of 7/8 and flips.

    transforms.py resizes the shorter side to 256 for crops of 224 (crop, crop_pct) and flips half of the images (the
    default).

    Source: FreqFiT, run.sh, configs/base-finetune.yaml, src/solver and src/data/transforms.py.
    """
    return {**PROTOCOL, "data_set": "FGVC", "resize": "crop", "crop_pct": 0.875}
