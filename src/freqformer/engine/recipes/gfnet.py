"""GFNet on ImageNet-1K: "Global Filter Networks for Image Classification" (NeurIPS 2021, arXiv 2107.00645).

The defaults of ClassificationConfig are those of GFNet's own script, so only the model's name differs. The script's
`--drop-path` does nothing: each variant's rate is written beside its depth, as it is in `models/gfnet.py`.
"""

from .base import Settings, recipe_of_each


@recipe_of_each(
    "gfnet_ti", "gfnet_xs", "gfnet_s", "gfnet_b", "gfnet_h_ti", "gfnet_h_s", "gfnet_h_b", name="imagenet_{}"
)
def imagenet(arch: str) -> Settings:
    """{} on ImageNet-1K from scratch: 300 epochs, 1024 images a step.

    Source: GFNet, README "Training: ImageNet" (8 processes of --batch-size 128), and the defaults of main_gfnet.py.
    """
    return {"arch": arch}
