"""The pictures of visualise.md, drawn of two small networks whose weights lie in docs/gallery.

`python docs/gallery.py` draws them;
`python docs/gallery.py --train` trains the networks first, on handwritten digits.
"""

import argparse
import io
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch

matplotlib.use("agg")

from matplotlib.figure import Figure
from PIL import Image

import freqformer
from freqformer import visualize
from freqformer.checkpoints import read_description, read_weights, save_weights
from freqformer.data import open_images
from freqformer.tasks import ClassificationConfig
from freqformer.tools.quickstart import digits_config

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
WEIGHTS = HERE / "gallery"
MOST_BYTES = 140_000


def plain_config(output_dir: str) -> ClassificationConfig:
    """The quickstart's network and training."""
    return replace(digits_config(output_dir), num_workers=0)


def dynamic_config(output_dir: str) -> ClassificationConfig:
    """A tiny DFFormer, whose filters are mixtures."""
    changes = {"arch": "test_dfformer", "model_args": {}, "input_size": 32, "epochs": 30, "lr": 1e-2}
    return replace(plain_config(output_dir), **changes)


def train() -> None:
    """Train both networks, and keep their weights in half precision."""
    for name, config_for in (("digits", plain_config), ("dynamic", dynamic_config)):
        with tempfile.TemporaryDirectory() as folder:
            freqformer.train(config_for(f"{folder}/run"))
            state = {key: value.half() for key, value in read_weights(f"{folder}/run").items()}
            save_weights(WEIGHTS / f"{name}.safetensors", state, read_description(f"{folder}/run"))


def save(figure: Figure, name: str, folder: Path) -> None:
    """Write a figure as a PNG, of 256 colours where more would make it large."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=100, bbox_inches="tight")
    target = folder / f"gallery-{name}.png"
    with Image.open(raw) as picture:
        small = picture.convert("RGB")
    small.thumbnail((1200, 1500))
    small.save(target, optimize=True)
    if target.stat().st_size > MOST_BYTES:
        small.quantize(256).save(target, optimize=True)
    print(f"{target.name}: {target.stat().st_size // 1000} kB", flush=True)


def draw(folder: Path = PICTURES) -> None:
    """Draw all pictures into a folder."""
    held_out = open_images("DIGITS", None, "val")
    images = [held_out.load(i) for i in range(0, 160, 5)]
    plain, dynamic = (freqformer.load_model(WEIGHTS / f"{name}.safetensors") for name in ("digits", "dynamic"))
    torch.manual_seed(0)
    untrained = freqformer.create_model("freqformer_n", num_classes=10, img_size=16, **plain_config("").model_args)
    save(visualize.filters(plain, channels=8), "filters", folder)
    save(visualize.mixtures(dynamic, images[:8]), "mixtures", folder)
    save(visualize.spectrum({"trained": plain, "untrained": untrained.eval()}, images), "spectrum", folder)
    save(visualize.response(plain, images), "response", folder)
    save(visualize.attention(plain, images[1]), "attention", folder)
    save(visualize.bands(visualize.agreement(plain, images)), "bands", folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", action="store_true", help="train the networks anew")
    if parser.parse_args().train:
        train()
    draw()
