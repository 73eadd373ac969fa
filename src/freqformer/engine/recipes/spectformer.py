"""SpectFormer and FreqFormer on ImageNet-1K: "SpectFormer: Frequency and Attention is what you need in a Vision
Transformer" (WACV 2025, arXiv 2304.06446).

FreqFormer's repository has SpectFormer's scripts under another name, line for line.
"""

from .base import Settings, recipe_of_each


@recipe_of_each(
    *("spectformer_ti", "spectformer_xs", "spectformer_s", "spectformer_b"),
    *("freqformer_ti", "freqformer_xs", "freqformer_s", "freqformer_b"),
    name="imagenet_{}",
)
def imagenet(arch: str) -> Settings:
    """{} on ImageNet-1K from scratch: 320 epochs, 1024 images a step.

    The README's line says nothing of epochs, which is 300; the logs beside it, which end at the published accuracies,
    have 320.

    Source: SpectFormers and freqformer, vanilla_architecture/main.sh (--epochs 320) and its logs (320 epochs each);
    main_spectformer.py's defaults are main_gfnet.py's.
    """
    return {"arch": arch, "epochs": 320}


@recipe_of_each(
    *("spectformer_h_s", "spectformer_h_b", "spectformer_h_l", "freqformer_h_s", "freqformer_h_b", "freqformer_h_l"),
    name="imagenet_{}",
    needs=("token_label_data",),
)
def imagenet_token_label(arch: str) -> Settings:
    """{} on ImageNet-1K from scratch with token labels: 310 epochs, 1024 images a step.

    The label maps are 7x7, of a teacher's best five classes in each cell (NFNet in the README, EfficientNet-L2 in
    main.sh). With them the script switches mixup and CutMix off, as mix-token takes their place, and repeated
    augmentation, which is on in its defaults, is never reached.

    Source: SpectFormers and freqformer, hierarchical_architecture/README.md "Train SpectFormer", its configs
    (clip_grad and drop_path of each size), and build_token_label in main.py.
    """
    return {
        "arch": arch,
        "epochs": 310,
        # L's gradients are clipped at 1, which is the default.
        **({} if arch.endswith("_l") else {"clip_grad": None}),
        "mixup": 0.0,
        "cutmix": 0.0,
        "reprob": 0.25,
        "train_interpolation": "random",
        "crop_pct": 0.96,
        "token_label": True,
        "token_label_size": 7,
    }
