"""DFFormer and CDFFormer on ImageNet-1K: "FFT-Based Dynamic Token Mixer for Vision" (AAAI 2024, arXiv 2303.03932)."""

from .base import Settings, recipe_of_each

# The repository prints S18's rate alone; the others are those of the networks of the same depth and width in
# MetaFormer Baselines, on which it is based (scripts/convformer/train_convformer_*.sh).
DROP_PATH = {"s18": 0.2, "s36": 0.3, "m36": 0.4, "b36": 0.6}


@recipe_of_each(
    *("dfformer_s18", "dfformer_s36", "dfformer_m36", "dfformer_b36"),
    *("cdfformer_s18", "cdfformer_s36", "cdfformer_m36", "cdfformer_b36"),
    name="imagenet_{}",
)
def imagenet(arch: str) -> Settings:
    """{} on ImageNet-1K from scratch: 300 epochs and 10 at the lowest rate, 1024 images a step.

    The learning rate is printed for 1024 images a step and is scaled to others here.

    Source: dfformer, README "Classification Training" (S18), and the defaults of its train.py, timm 0.5.4's. It prints
    no line for the other sizes: their stochastic depth is that of MetaFormer Baselines' scripts.
    """
    return {
        "arch": arch,
        "lr": 1e-3,
        "lr_base_batch": 1024,
        "warmup_epochs": 20,
        "cooldown_epochs": 10,
        "clip_grad": None,
        "drop_path": DROP_PATH[arch.rpartition("_")[2]],
        "reprob": 0.25,
        "train_interpolation": "random",
    }
