"""The first ten minutes: train, evaluate and predict on real images that come with scikit-learn."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import yaml
from PIL import Image

from ..data import open_images
from ..engine import run
from ..tasks import ClassificationConfig
from ..tasks.pictures import draw_predictions
from .predict import Prediction, predict

FOLDER = "runs/quickstart"
"""Where a quickstart goes, unless told otherwise."""


def digits_config(output_dir: str) -> ClassificationConfig:
    """A small FreqFormer on the handwritten digits: under 90 seconds on two CPU cores."""
    return ClassificationConfig(
        arch="freqformer_n",
        model_args={"patch_size": 2, "embed_dim": 96, "depth": 4, "spectral_depth": 2},
        data_set="DIGITS",
        input_size=16,
        epochs=20,
        batch_size=48,
        lr=2e-3,
        lr_base_batch=None,
        # Digits must not be mirrored, and so short a run needs no mixing.
        hflip=0,
        mixup=0,
        cutmix=0,
        aa="none",
        num_workers=1,
        output_dir=output_dir,
    )


def quickstart(output_dir: str = FOLDER) -> dict[str, float]:
    """Train on the digits, evaluate on the held-out ones, predict a few and say where everything lies.

    Args:
        output_dir: the run's folder; an earlier quickstart in it is replaced.

    Returns:
        ``top1``, the held-out accuracy, and ``train_seconds``.

    Raises:
        FreqFormerError: the folder cannot be written.
    """
    folder = Path(output_dir)
    started = time.monotonic()
    config = digits_config(output_dir)
    metrics = run(replace(config, overwrite=_is_repeat(config, folder)))
    held_out = open_images("DIGITS", None, "val")
    shown = range(0, len(held_out), len(held_out) // 16)[:16]
    images = [held_out.load(i) for i in shown]
    predictions = predict(folder, images)
    truth = [held_out.classes[held_out.targets[i]] for i in shown]
    _show(folder, images, predictions, truth)
    top1 = metrics["best"]["top1"]
    print(
        f"held-out accuracy {100 * top1:.2f}%, trained in {metrics['train_seconds']:.0f} s "
        f"({time.monotonic() - started:.0f} s in all)"
    )
    return {"top1": top1, "train_seconds": metrics["train_seconds"]}


def is_finished(output_dir: str = FOLDER) -> bool:
    """Whether a folder holds a quickstart that came to its end."""
    folder = Path(output_dir)
    if not _is_repeat(digits_config(output_dir), folder) or not (folder / "model.safetensors").is_file():
        return False
    metrics = folder / "metrics.json"
    return metrics.is_file() and "best" in json.loads(metrics.read_text())


def _is_repeat(config: ClassificationConfig, folder: Path) -> bool:
    """Whether the folder holds an earlier quickstart, which may be replaced; another run may not."""
    kept = folder / "config.yaml"
    if not kept.is_file():
        return False
    settings = yaml.safe_load(yaml.safe_dump(asdict(config)))
    # The same folder may be spelt in several ways.
    return {**yaml.safe_load(kept.read_text()), "output_dir": None} == {**settings, "output_dir": None}


def _show(folder: Path, images: list[Image.Image], predictions: list[Prediction], truth: list[str]) -> None:
    most = [(one.labels[0], one.probabilities[0]) for one in predictions]
    names, shares = zip(*most, strict=True)
    draw_predictions(images, names, shares, truth, folder / "predictions.png")
    for prediction, label in zip(predictions[:5], truth, strict=False):
        print(f"{prediction.image}: predicted {prediction.labels[0]} ({prediction.probabilities[0]:.0%}), is {label}")
    for name, what in {
        "model.safetensors": "the best epoch's weights",
        "config.json": "their architecture, preprocessing and label names",
        "checkpoints/last.ckpt": "the state that --resume continues from",
        "metrics.json": "figures of every epoch",
        "curves.png": "the same, drawn",
        "confusion.png": "which digits are taken for which",
        "predictions.png": "a few held-out digits with their predictions",
        "report.html": "all of it on one page",
    }.items():
        print(f"  {folder / name}: {what}")
