"""FreqFit beside other ways to adapt a frozen network: a small one pre-trained here to other data, a large one's cost.

python benchmarks/freqfit.py --cifar10 DIR --fashion-mnist DIR --hymenoptera DIR    train what is missing
python benchmarks/freqfit.py --memory --time            a training step of ViT-B/16: peak memory, seconds in turn
python benchmarks/freqfit.py --report docs              write the tables and the picture of docs/freqfit.md

A row is written as each run ends, and what has a row is not run again. The learning rate of each arm and data set is
the best of a grid on the fifth of the training images that is held out (one seed); then each seed trains on all of them
and the last epoch's weights are evaluated on the test images, which nothing was chosen by.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

import freqformer
from freqformer.bench import append_rows, make_row
from freqformer.bench.memory import forgetful_environment, step_peak
from freqformer.bench.record import Row, read_rows
from freqformer.checkpoints import write_whole
from freqformer.data import open_images
from freqformer.engine import EvaluationConfig, evaluate
from freqformer.engine.lightning import resolve_precision
from freqformer.tasks import AdaptationConfig, ClassificationConfig

ROWS = Path(__file__).parent / "results" / "freqfit.json"
RUNS = Path("runs/freqfit")
ENCODER = RUNS / "vit-cifar10"
SEEDS = (42, 44, 82)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""The grid: 3e-3 and 1e-2, and further out as long as the best one is at an end of what was tried."""
_LORA: dict[str, Any] = {"method": "lora", "peft": {"r": 8, "lora_alpha": 8}}
ARMS: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear", "freqfit": "none"},
    "BitFit": {"method": "bias", "freqfit": "none"},
    "SSF": {"method": "linear", "freqfit": "ssf"},
    "FreqFit": {"method": "linear", "freqfit": "filter2d"},
    "LoRA": {**_LORA, "freqfit": "none"},
    # About as many parameters as FreqFit-LoRA.
    "LoRA, rank 13": {"method": "lora", "peft": {"r": 13, "lora_alpha": 13}, "freqfit": "none"},
    "FreqFit-LoRA": {**_LORA, "freqfit": "filter2d"},
    "FreqFit*-LoRA": {**_LORA, "freqfit": "filter2d_real"},
    "full": {"method": "full", "freqfit": "none"},
}
PRETRAINING: dict[str, Any] = {
    "arch": "freqformer_n",
    # Attention in all blocks: a ViT without class token.
    "model_args": {"spectral_depth": 0, "embed_dim": 96, "depth": 6, "num_heads": 3},
    "data_set": "CIFAR10",
    "input_size": 32,
    "epochs": 3,
    "warmup_epochs": 0.5,
    "batch_size": 64,
    "lr": 1.5e-3,
    "lr_base_batch": None,
    "mixup": 0,
    "cutmix": 0,
    "aa": "none",
    "smoothing": 0,
    "drop_path": 0,
    "num_workers": 0,
}
# As VTAB's protocol: the whole image, no augmentation. AdamW, cosine, a fifth of the epochs warm-up: adapt's defaults.
BUDGET: dict[str, Any] = {"batch_size": 16, "resize": "squash", "hflip": 0.0, "num_workers": 0}
# Images to train on (a fifth of these is held out for the learning rate), test images, epochs.
DATA: dict[str, dict[str, int]] = {
    "digits": {"train": 300, "test": 355, "epochs": 12},
    "fashion-mnist": {"train": 500, "test": 1000, "epochs": 6},
    "hymenoptera": {"train": 244, "test": 153, "epochs": 6},
}
LARGE, LARGE_BATCH, LARGE_CLASSES = "vit_base_patch16_224", 8, 100


def pretrain(folder: str) -> None:
    """Train the encoder on CIFAR-10, or go on with it."""
    config = ClassificationConfig(data_path=folder, output_dir=str(ENCODER), **PRETRAINING)
    config.resume = "last" if (ENCODER / "config.yaml").exists() else None
    metrics = freqformer.train(config)
    if not _found(read_rows(ROWS), "pre-training"):
        result = {
            "top1_of_epochs": [round(epoch["val/top1"], 4) for epoch in metrics["epochs"]],
            "top1": metrics["best"]["top1"],
            "seconds_of_epochs": [round(epoch["seconds"]) for epoch in metrics["epochs"]],
        }
        _write("pre-training", {**PRETRAINING, "seed": config.seed}, result)


def adapt_missing(folders: dict[str, str]) -> None:
    """Of each data set choose every arm's learning rate, then train every seed, one after the other."""
    for data, folder in folders.items():
        chosen = {arm: _tuned(data, folder, arm) for arm in ARMS}
        for seed in SEEDS:
            for arm in ARMS:
                if _found(read_rows(ROWS), "accuracy", data=data, arm=arm, seed=seed):
                    continue
                # What is seen between the epochs is of training images and decides nothing.
                config = _config(data, folder, arm, chosen[arm], seed, "train")
                metrics = _run(config)
                last = Path(str(config.output_dir)) / "checkpoints" / "last.ckpt"
                figures = evaluate(
                    EvaluationConfig(
                        model_path=str(last), data_set="FOLDER", data_path=folder, split="val", num_workers=0
                    )
                )
                result = {
                    "top1": figures["top1"],
                    **_counts(config.build()[0].model),
                    "train_seconds": metrics["train_seconds"],
                }
                sizes = {**_sizes(config), "train": DATA[data]["train"], "test": figures["images"]}
                _write("accuracy", {"data": data, "arm": arm, "lr": config.lr, "seed": seed, **sizes}, result)
                shutil.rmtree(str(config.output_dir))


def measure_memory() -> None:
    """Memory of a step of every arm on the large network, each in a fresh process."""
    for arm in ARMS:
        line = [sys.executable, __file__, "--memory-of", arm]
        done = subprocess.run(line, env=forgetful_environment(), stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(done.stdout.splitlines()[-1])
        print(f"{arm}: {result}", flush=True)
        _write("memory", {"network": LARGE, "arm": arm, "batch_size": LARGE_BATCH, "opt": "adamw"}, result)


def measure_time(rounds: int) -> None:
    """Seconds of a step of every arm on the large network, one after the other in each round."""
    steps = {arm: _large_step(arm)[0] for arm in ARMS}
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for round_ in range(rounds + 1):
        for arm, step in steps.items():
            started = time.perf_counter()
            step()
            # The first round warms up.
            if round_:
                seconds[arm].append(time.perf_counter() - started)
        print(f"round {round_} of {rounds}", flush=True)
    for arm, times in seconds.items():
        ratios = [own / full for own, full in zip(times, seconds["full"], strict=True)]
        result = {
            "step_seconds": statistics.median(times),
            "of_full": statistics.median(ratios),
            "of_full_least": min(ratios),
            "of_full_most": max(ratios),
        }
        setting = {"network": LARGE, "arm": arm, "batch_size": LARGE_BATCH, "opt": "adamw", "rounds": rounds}
        _write("time", setting, result)


def print_memory(arm: str) -> None:
    """Print what a step of an arm on the large network holds at its peak, in this fresh process."""
    step, model, optimizer = _large_step(arm)
    peak = step_peak(step)
    state = sum(
        value.nbytes for row in optimizer.state.values() for value in row.values() if isinstance(value, torch.Tensor)
    )
    print(json.dumps({"peak_bytes": peak, "optimizer_bytes": state, **_counts(model)}))


def report(docs: Path) -> None:
    """Put the tables between the marks of ``freqfit.md`` and draw its picture."""
    rows = read_rows(ROWS)
    parts = []
    shown = [data for data in DATA if _found(rows, "accuracy", data=data)]
    picture = Figure(figsize=(1 + 4.5 * len(shown), 4.2), layout="constrained")
    for axes, data in zip(picture.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        lines = ["| arm | trainable | without classifier | lr | top-1 %, mean ± std | each seed | s a run |"]
        lines.append("|---|---|---|---|---|---|---|")
        for arm in ARMS:
            found = _found(rows, "accuracy", data=data, arm=arm)
            if not found:
                continue
            scores = [100 * row["result"]["top1"] for row in found]
            mean, spread = statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0
            trained, head = (found[0]["result"][name] for name in ("trained_parameters", "classifier_parameters"))
            taken = statistics.median(row["result"]["train_seconds"] for row in found)
            lines.append(
                f"| {arm} | {trained:,} | {trained - head:,} | {found[0]['setting']['lr']:g} "
                f"| {mean:.2f} ± {spread:.2f} | {', '.join(f'{score:.2f}' for score in scores)} | {taken:.0f} |"
            )
            axes.errorbar(trained, mean, yerr=spread, marker="o", capsize=3, linestyle="none", label=arm)
        images = f"{DATA[data]['train']} training images"
        axes.set(title=f"{data}, {images}", xlabel="trainable parameters", xscale="log")
        axes.grid(alpha=0.3)
        parts += [f"### {data}: {images}", "", *lines, ""]
    picture.axes[0].set_ylabel("test top-1 in %, mean ± std of the seeds")
    picture.axes[0].legend(fontsize="small")
    picture.savefig(docs / "pictures" / "freqfit-accuracy.png", dpi=110)
    parts += ["![accuracy against trainable parameters](pictures/freqfit-accuracy.png)", "", *_cost_table(rows)]
    page = docs / "freqfit.md"
    start, end = "<!-- tables -->\n", "<!-- end of tables -->\n"
    before, _, rest = page.read_text().partition(start)
    _, _, after = rest.partition(end)
    write_whole(page, lambda path: path.write_text(before + start + "\n" + "\n".join(parts) + end + after))
    print(page)


def _cost_table(rows: list[Row]) -> list[str]:
    memory = {row["setting"]["arm"]: row["result"] for row in _found(rows, "memory")}
    seconds = {row["setting"]["arm"]: row["result"] for row in _found(rows, "time")}
    if not memory.keys() & seconds.keys():
        return []
    lines = [f"### A training step of ViT-B/16 at 224x224, {LARGE_BATCH} images, bfloat16, AdamW", ""]
    lines.append("| arm | trainable | optimiser state, MB | peak memory, MB | of full | s a step | of full (range) |")
    lines.append("|---|---|---|---|---|---|---|")
    for arm in [arm for arm in ARMS if arm in memory and arm in seconds]:
        result, times = memory[arm], seconds[arm]
        peak = result["peak_bytes"]
        lines.append(
            f"| {arm} | {result['trained_parameters']:,} | {result['optimizer_bytes'] / 1e6:.1f} | {peak / 1e6:,.0f} "
            f"| {peak / memory['full']['peak_bytes']:.2f} | {times['step_seconds']:.2f} "
            f"| {times['of_full']:.2f} ({times['of_full_least']:.2f} to {times['of_full_most']:.2f}) |"
        )
    return [*lines, ""]


def _tuned(data: str, folder: str, arm: str) -> float:
    """The arm's learning rate of the grid that is best on the held-out fifth."""
    tried = {
        row["setting"]["lr"]: (row["result"]["top1"], -row["result"]["loss"])
        for row in _found(read_rows(ROWS), "learning rate", data=data, arm=arm)
    }
    indices = {RATES.index(rate) for rate in {3e-3, 1e-2, *tried}}
    low, high = min(indices), max(indices)
    while True:
        for rate in RATES[low : high + 1]:
            if rate in tried:
                continue
            config = _config(data, folder, arm, rate, SEEDS[0], "train80")
            last = _run(config)["epochs"][-1]
            tried[rate] = last["val/top1"], -last["val/loss"]
            setting = {"data": data, "arm": arm, "lr": rate, "seed": config.seed, **_sizes(config)}
            _write("learning rate", setting, {"top1": last["val/top1"], "loss": last["val/loss"]})
            shutil.rmtree(str(config.output_dir))
        best = RATES.index(max(tried, key=lambda rate: tried[rate]))
        if best == low > 0:
            low -= 1
        elif best == high < len(RATES) - 1:
            high += 1
        else:
            return RATES[best]


def _config(data: str, folder: str, arm: str, rate: float, seed: int, split: str) -> AdaptationConfig:
    name = "".join(c if c.isalnum() else "-" for c in f"{data}-{arm}-{rate:g}-{seed}-{split}")
    return AdaptationConfig(
        encoder=str(ENCODER),
        data_set="FOLDER",
        data_path=folder,
        train_split=split,
        val_split="train20",
        epochs=DATA[data]["epochs"],
        lr=rate,
        seed=seed,
        output_dir=str(RUNS / name),
        # What is there was stopped in its midst.
        overwrite=True,
        **ARMS[arm],
        **BUDGET,
    )


def _run(config: AdaptationConfig) -> dict[str, Any]:
    print(config.output_dir, flush=True)
    return freqformer.train(config)


def _sizes(config: AdaptationConfig) -> dict[str, Any]:
    return {"epochs": config.epochs, "batch_size": config.batch_size, "opt": config.opt}


def _counts(model: torch.nn.Module) -> dict[str, int]:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = sum(p.numel() for p in model.get_classifier().parameters())  # type: ignore[operator]
    return {"trained_parameters": trained, "classifier_parameters": head}


def _large_step(arm: str) -> tuple[Callable[[], None], torch.nn.Module, torch.optim.Optimizer]:
    """A training step of the large network, as adapt makes it, and what it trains with."""
    torch.manual_seed(0)
    config = AdaptationConfig(encoder=LARGE, pretrained=False, **ARMS[arm])
    task = config.make_task([str(label) for label in range(LARGE_CLASSES)]).train()
    optimizer, _ = task.optimization(steps_per_epoch=15)
    batch = {
        "image": torch.randn(LARGE_BATCH, 3, 224, 224),
        "target": torch.randint(LARGE_CLASSES, (LARGE_BATCH,)),
    }

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=_precision() == "bfloat16"):
            loss = task.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, task.model, optimizer


def _folders(data: str, name: str, source: str | None) -> str:
    """Class folders of a part of a data set, balanced over the classes, made once."""
    folder = RUNS / data
    if folder.exists():
        return str(folder)
    aside = folder.with_name(f"{data}.part")
    shutil.rmtree(aside, ignore_errors=True)
    for split, count in (("train", DATA[data]["train"]), ("val", DATA[data]["test"])):
        images = open_images(name, source, split, limit=count)
        for i, label in enumerate(images.targets):
            path = aside / split / images.classes[label].replace("/", "-") / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            # As the network's own transform would, at every epoch.
            images.load(i).resize((32, 32), Image.Resampling.BICUBIC).save(path)
    aside.rename(folder)
    return str(folder)


def _write(what: str, setting: dict[str, Any], result: dict[str, Any]) -> None:
    append_rows(ROWS, [make_row(what, setting, result, dtype=_precision(), device="cpu")])


def _precision() -> str:
    return {"bf16-mixed": "bfloat16"}.get(resolve_precision("auto", "cpu"), "float32")


def _found(rows: list[Row], what: str, **setting: Any) -> list[Row]:
    return [row for row in rows if row["what"] == what and setting.items() <= _flat(row["setting"]).items()]


def _flat(setting: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if not isinstance(value, dict)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", help="folder of CIFAR-10's shards or archive, for the encoder")
    parser.add_argument("--fashion-mnist", help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--hymenoptera", help="folder of the ants and bees")
    parser.add_argument("--memory", action="store_true", help="memory of a step of the large network")
    parser.add_argument("--time", action="store_true", help="time of a step of the large network")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each arm that --time times")
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, metavar="DOCS", help="write the tables and the picture")
    args = parser.parse_args()
    if not (args.cifar10 or args.memory or args.memory_of or args.time or args.report):
        parser.error("name the data sets' folders, --memory, --time or --report")
    try:
        if args.memory_of:
            print_memory(args.memory_of)
        if args.cifar10:
            pretrain(args.cifar10)
            folders = {"digits": _folders("digits", "DIGITS", None)}
            if args.fashion_mnist:
                folders["fashion-mnist"] = _folders("fashion-mnist", "FASHION_MNIST", args.fashion_mnist)
            if args.hymenoptera:
                folders["hymenoptera"] = _folders("hymenoptera", "FOLDER", args.hymenoptera)
            adapt_missing(folders)
        if args.memory:
            measure_memory()
        if args.time:
            measure_time(args.rounds)
        if args.report:
            report(args.report)
    except freqformer.FreqFormerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
