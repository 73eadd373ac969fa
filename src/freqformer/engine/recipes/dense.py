"""Detection and segmentation: the papers' lines on COCO and ADE20K, and our own for small data from scratch.

The papers trained 8 processes from ImageNet's weights, which are the user's to name (`--backbone-weights`, or
`--pretrained`); `--arch` takes another backbone. Most of a paper's line is the defaults of its command: RetinaNet 1x of
`freqformer detect train`, Semantic FPN of `freqformer segment train`.
"""

from .base import Settings, recipe

DETECT = "detect train"
SEGMENT = "segment train"


@recipe("retinanet_1x", command=DETECT)
def retinanet() -> Settings:
    """RetinaNet on COCO from ImageNet's weights: 12 epochs, 16 images a step, 800 pixels; any --arch.

    The defaults have the rest: AdamW at 1e-4 for 16 images, weight decay 0.05 of everything, a tenth of the rate after
    8 and after 11 epochs, 500 steps of warm-up from a thousandth of it, no clipping, no stochastic depth.

    Source: dfformer, detection/configs/retinanet/dfformer_s18_retinanet.py and its _base_ (mmdetection 2).
    """
    return {"arch": "dfformer_s18"}


TWO_STAGES: Settings = {"arch": "spectformer_h_s", "lr": 2e-4, "warmup_lr": 2e-7, "weight_decay": 1e-4}
"""PoolFormer's, PVT's and Wave-ViT's line; SpectFormer names it as its own but printed no config."""


@recipe("fasterrcnn_1x", command=DETECT)
def faster_rcnn() -> Settings:
    """Faster R-CNN on COCO from ImageNet's weights: 12 epochs, 16 images a step, 800 pixels; any --arch.

    No paper reports it with these backbones: it is the line of Mask R-CNN without masks.

    Source: poolformer, detection/configs/mask_rcnn_poolformer_s12_fpn_1x_coco.py, and the same line in PVT.
    """
    return {**TWO_STAGES, "detector": "fasterrcnn"}


@recipe("maskrcnn_1x", command=DETECT)
def mask_rcnn() -> Settings:
    """Mask R-CNN on COCO from ImageNet's weights: 12 epochs, 16 images a step, 800 pixels; any --arch.

    Source: poolformer, detection/configs/mask_rcnn_poolformer_s12_fpn_1x_coco.py, and the same line in PVT
    (mask_rcnn_pvt_v2_b2_fpn_1x_coco.py) and Wave-ViT (mask_rcnn_wavevit_s_fpn_1x_coco.py), whose setting SpectFormer
    takes.
    """
    return {**TWO_STAGES, "detector": "maskrcnn"}


@recipe("maskrcnn_3x_ms", command=DETECT)
def mask_rcnn_3x() -> Settings:
    """Mask R-CNN on COCO from ImageNet's weights: 36 epochs, 16 images a step, 480 to 800 pixels; any --arch.

    The source also cuts a random window out of half of the images before it resizes them, which is left out here, and
    spares norms and position embeddings alone the weight decay, which here spares biases too.

    Source: PVT, detection/configs/mask_rcnn_pvt_v2_b2_fpn_3x_mstrain.py.
    """
    return {
        "arch": "spectformer_h_s",
        "detector": "maskrcnn",
        "train_sizes": list(range(480, 801, 32)),
        "epochs": 36,
        "decay_milestones": [27, 33],
        "decay_all": False,
    }


@recipe("semantic_fpn", command=SEGMENT)
def semantic_fpn() -> Settings:
    """Semantic FPN on ADE20K from ImageNet's weights: 64 epochs (40,384 steps of 32 images), crops of 512; any --arch.

    The source counts 40,000 steps; 20,210 images are 631 steps an epoch. The defaults have the rest: AdamW at 2e-4 for
    32 images, weight decay 1e-4 of everything, the rate falling as the power 0.9 to 0 without a warm-up. Its
    photometric distortion changes brightness, contrast, saturation (by up to a half) and hue, each half of the time; a
    jitter of 0.3 of the first three, always, has about the same deviation.

    Source: dfformer, segmentation/configs/fpn/dfformer_s18_fpn.py and its _base_ (mmsegmentation 0).
    """
    return {"arch": "dfformer_s18", "shorter_side": 512, "decoder_args": {"decoder_dropout": 0.1}}


SMALL: Settings = {
    "arch": "gfnet_h_n",
    "lr": 1e-3,
    "lr_base_batch": None,
    "decay_all": False,
    "warmup_epochs": 1.0,
    "clip_grad": 5.0,
    "model_ema": True,
    "model_ema_decay": 0.99,
}
"""What the small ones have in common: a network of 1.6 M parameters and an average over the last hundred steps."""

SMALL_DETECTOR: Settings = {
    **SMALL,
    "fpn_channels": 64,
    "head_norm": "group",
    "batch_size": 4,
    "sched": "cosine",
    "min_lr": 2e-5,
    "color_jitter": 0.2,
}
"""What the small detectors have in common; they learn from scratch, hence the norms in neck and heads."""


@recipe("small_retinanet", command=DETECT)
def small_retinanet() -> Settings:
    """RetinaNet for some hundred images, from scratch on a CPU: 30 epochs, 4 images a step, 240 pixels; any --arch.

    Source: ours, of runs on 205 images of blood cells (BCCD).
    """
    return {
        **SMALL_DETECTOR,
        "input_size": (240, 320),
        "anchor_sizes": [16, 32, 64, 128, 256],
        "epochs": 30,
    }


SMALL_TWO_STAGES: Settings = {
    **SMALL_DETECTOR,
    "anchor_sizes": [8, 16, 32, 64, 128],
    "proposals": 500,
    "roi_samples": 64,
}


@recipe("small_fasterrcnn", command=DETECT)
def small_faster_rcnn() -> Settings:
    """Faster R-CNN for some hundred images, from scratch on a CPU: 12 epochs, 4 images a step, 240 pixels; any --arch.

    Source: ours, of runs on 205 images of blood cells (BCCD) and 273 of cell nuclei (dsb2018).
    """
    return {
        **SMALL_TWO_STAGES,
        "detector": "fasterrcnn",
        "input_size": (240, 320),
    }


@recipe("small_maskrcnn", command=DETECT)
def small_mask_rcnn() -> Settings:
    """Mask R-CNN for some hundred images, from scratch on a CPU: 12 epochs, 4 images a step, 256 pixels; any --arch.

    Source: ours, of runs on 273 images of cell nuclei (dsb2018).
    """
    return {
        **SMALL_TWO_STAGES,
        "detector": "maskrcnn",
        "input_size": (256, 256),
    }


@recipe("small_fpn", command=SEGMENT)
def small_fpn() -> Settings:
    """Semantic FPN for some hundred images, from scratch on a CPU: 50 epochs, 8 images a step, 180 pixels; any --arch.

    Source: ours, of runs on 367 images of streets (CamVid).
    """
    return {
        **SMALL,
        "arch": "freqformer_h_n",
        "class_balance": 0.5,
        "decoder_args": {
            "decoder_pyramid_channels": 64,
            "decoder_segmentation_channels": 64,
            "decoder_dropout": 0.1,
        },
        "pyramid_channels": 64,
        "input_size": (180, 240),
        "shorter_side": 180,
        "scale": (0.75, 1.5),
        "batch_size": 8,
        "epochs": 50,
        "weight_decay": 0.05,
        "sched": "cosine",
        "min_lr": 2e-5,
    }
