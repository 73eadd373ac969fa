"""Train freqformer_n on CIFAR-10 or Fashion-MNIST, the runs behind the table in the README.

python benchmarks/small_images.py CIFAR10 --data-path DIR --output-dir runs/cifar10
"""

import argparse

from record import record

import freqformer
from freqformer.tasks import ClassificationConfig

EPOCHS = {"CIFAR10": 20, "FASHION_MNIST": 14}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_set", choices=EPOCHS)
    parser.add_argument("--data-path", required=True)
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--resume", action="store_const", const="last")
    args = parser.parse_args()
    # Crops and flips alone: so few epochs leave nothing to regularise.
    config = ClassificationConfig(
        arch="freqformer_n",
        epochs=EPOCHS[args.data_set],
        lr=1.5e-3,
        lr_base_batch=None,
        mixup=0,
        cutmix=0,
        aa="none",
        warmup_epochs=2,
        **vars(args),
    )
    metrics = freqformer.train(config)
    name = f"freqformer_n-{args.data_set.lower().replace('_', '-')}"
    print(record(name, metrics))


if __name__ == "__main__":
    main()
