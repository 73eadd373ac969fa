"""The pictures of visualise.md: `python docs/gallery.py` trains two small networks on digits and draws them.

It takes some minutes on two cores. `--runs FOLDER` keeps the runs, and uses those that are there.
"""

import argparse
import io
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("agg")

from matplotlib.figure import Figure
from PIL import Image

import freqformer
from freqformer import visualize
from freqformer.data import open_images
from freqformer.tasks import ClassificationConfig
from freqformer.tools.quickstart import digits_config

PICTURES = Path(__file__).parent / "pictures"
MOST_BYTES = 140_000


def plain_config(output_dir: str) -> ClassificationConfig:
    """The quickstart's network, a shorter training."""
    return replace(digits_config(output_dir), epochs=8, warmup_epochs=1, num_workers=0)


def dynamic_config(output_dir: str) -> ClassificationConfig:
    """A tiny DFFormer, whose filters are mixtures."""
    changes = {"arch": "test_dfformer", "model_args": {}, "input_size": 32, "epochs": 5}
    return replace(plain_config(output_dir), **changes)


def network(config: ClassificationConfig) -> freqformer.models.SpectralNet:
    """The network of a run, trained where it is not there yet."""
    assert config.output_dir is not None
    if not (Path(config.output_dir) / "model.safetensors").is_file():
        freqformer.train(config)
    return freqformer.load_model(config.output_dir)


def save(figure: Figure, name: str) -> None:
    """Write a figure as a PNG, of 256 colours where more would make it large."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=100, bbox_inches="tight")
    target = PICTURES / f"gallery-{name}.png"
    with Image.open(raw) as picture:
        small = picture.convert("RGB")
    small.thumbnail((1200, 1500))
    small.save(target, optimize=True)
    if target.stat().st_size > MOST_BYTES:
        small.quantize(256).save(target, optimize=True)
    print(f"{target.name}: {target.stat().st_size // 1000} kB", flush=True)


def draw(runs: Path) -> None:
    """Train, and draw."""
    held_out = open_images("DIGITS", None, "val")
    images = [held_out.load(i) for i in range(0, 160, 5)]
    plain = network(plain_config(str(runs / "digits")))
    dynamic = network(dynamic_config(str(runs / "dynamic")))
    untrained = freqformer.create_model(
        "freqformer_n", num_classes=10, img_size=16, **plain_config("unused").model_args
    ).eval()
    save(visualize.filters(plain, channels=8), "filters")
    save(visualize.mixtures(dynamic, images[:8]), "mixtures")
    save(visualize.spectrum({"trained": plain, "untrained": untrained}, images), "spectrum")
    save(visualize.response(plain, images), "response")
    save(visualize.attention(plain, images[1]), "attention")
    save(visualize.bands(visualize.agreement(plain, images)), "bands")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, help="where the two runs are kept")
    chosen = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as passing:
        draw(chosen or Path(passing))
