"""The defaults of timm's training script, which its spelling `--model` implies."""

from .base import Settings, recipe


@recipe("timm")
def timm() -> Settings:
    """What --model implies: the defaults of timm's train.py, whose learning rate is for the batch as it is.

    Without `--amp` or `--native-amp` it trains in float32.

    Source: dfformer, the parser of train.py, a copy of timm 0.5.4's.
    """
    return {
        "opt": "sgd",
        "lr": 0.05,
        "lr_base_batch": None,
        "weight_decay": 2e-5,
        "warmup_lr": 1e-4,
        "warmup_epochs": 3,
        "cooldown_epochs": 10,
        "decay_epochs": 100.0,
        "clip_grad": None,
        "mixup": 0.0,
        "cutmix": 0.0,
        "aa": "none",
        "color_jitter": 0.4,
        "train_interpolation": "random",
        "model_ema_decay": 0.9998,
        "precision": "32-true",
        "seed": 42,
    }
