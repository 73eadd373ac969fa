"""Train freqformer_n on CIFAR-10 or Fashion-MNIST, the runs behind the table in the README.

python benchmarks/small_images.py CIFAR10 --data-path DIR --output-dir runs/cifar10
"""

import argparse
from pathlib import Path

import torch

import freqformer
from freqformer.bench import append_rows, make_row
from freqformer.engine.lightning import resolve_precision
from freqformer.tasks import ClassificationConfig

ROWS = Path(__file__).parent / "results" / "small_images.json"

# Crops and flips alone, as so few epochs leave little to regularise.
SETTINGS = {
    "CIFAR10": {"epochs": 20, "lr": 1.5e-3},
    # Its things are centred, and shifting them slows the learning. Without shifts 24 epochs overfit, though: 90.8 %;
    # with shifts by 4 pixels 14 epochs underfit: 89.6 %. A padding of 1 or 2 is what to try next.
    "FASHION_MNIST": {"epochs": 24, "lr": 1.5e-3, "batch_size": 64, "input_size": 28, "crop_padding": 0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_set", choices=SETTINGS)
    parser.add_argument("--data-path", required=True)
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--resume", action="store_const", const="last")
    args = parser.parse_args()
    config = ClassificationConfig(
        arch="freqformer_n",
        lr_base_batch=None,
        mixup=0,
        cutmix=0,
        aa="none",
        warmup_epochs=2,
        **SETTINGS[args.data_set],
        **vars(args),
    )
    metrics = freqformer.train(config)
    precision = resolve_precision(config.precision, config.accelerator)
    row = make_row(
        "small_images",
        {"arch": config.arch, "data_set": config.data_set},
        metrics,
        dtype={"bf16-mixed": "bfloat16", "16-mixed": "float16"}.get(precision, "float32"),
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    append_rows(ROWS, [row])
    print(ROWS)


if __name__ == "__main__":
    main()
