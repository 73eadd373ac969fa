"""Spectral blocks, attention, and their order: small networks of equal size on small images.

python benchmarks/evidence.py --cifar10 DIR --fashion-mnist DIR     train what is missing, a row as each run ends
python benchmarks/evidence.py --time                                time a training step of each arm, in turn
python benchmarks/evidence.py --report docs                         write the tables and pictures of docs/evidence.md

A run that is stopped goes on where it was; an arm and a seed that have a row are not trained again. The numbers
are functions of the seed for one kind of processor and one number of threads.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

import freqformer
from freqformer.bench import append_rows, make_row
from freqformer.bench.record import Row, read_rows
from freqformer.checkpoints import write_whole
from freqformer.engine.lightning import resolve_precision
from freqformer.tasks import ClassificationConfig

ROWS = Path(__file__).parent / "results" / "evidence.json"
RUNS = Path("runs/evidence")
SEEDS = (0, 1, 2)
DEPTH, DIM = 6, 48
# Arms by name: the mixer of each block, from the image to the head.
ARMS = {
    "attention": ["attention"] * 6,
    "2 spectral, 4 attention": ["global"] * 2 + ["attention"] * 4,
    "4 spectral, 2 attention": ["global"] * 4 + ["attention"] * 2,
    "spectral": ["global"] * 6,
    "4 attention, 2 spectral": ["attention"] * 4 + ["global"] * 2,
    "dynamic": ["dynamic"] * 6,
}
# Everything is equal but the mixers, and the MLPs' width that makes up for their different numbers of parameters.
BUDGET: dict[str, Any] = {
    "epochs": 8,
    "limit_train": 8_000,
    "batch_size": 64,
    "lr": 2e-3,
    "lr_base_batch": None,
    "warmup_epochs": 1,
    "mixup": 0,
    "cutmix": 0,
    "aa": "none",
    "smoothing": 0.1,
    "drop_path": 0.0,
    "num_workers": 0,
}
DATA: dict[str, dict[str, Any]] = {
    "CIFAR10": {"input_size": 32},
    "FASHION_MNIST": {"input_size": 28, "crop_padding": 1},
}


def arguments(arm: str, data_set: str) -> dict[str, Any]:
    """Keywords of an arm's network, its MLPs as wide as makes its parameters those of the attention arm."""
    size = DATA[data_set]["input_size"]

    def network(mixers: list[str], hidden: int) -> dict[str, Any]:
        # Half a channel more, so that rounding down finds the width again.
        ratio = (hidden + 0.5) / DIM
        return {"embed_dim": DIM, "depth": DEPTH, "num_heads": 3, "mixers": mixers, "mlp_ratio": ratio}

    goal = _parameters(network(ARMS["attention"], 4 * DIM), size)
    widths = range(DIM, 8 * DIM)
    return network(ARMS[arm], min(widths, key=lambda hidden: abs(_parameters(network(ARMS[arm], hidden), size) - goal)))


def train_missing(folders: dict[str, str]) -> None:
    """Train every arm on every data set with every seed, one seed after the other."""
    done = {_key(row["setting"]) for row in read_rows(ROWS)}
    for seed in SEEDS:
        for data_set, folder in folders.items():
            for arm in ARMS:
                setting = {"data_set": data_set, "arm": arm, "seed": seed}
                if _key(setting) in done:
                    continue
                print(f"{data_set}, {arm}, seed {seed}", flush=True)
                network = arguments(arm, data_set)
                config = ClassificationConfig(
                    arch="freqformer_n",
                    model_args=network,
                    data_set=data_set,
                    data_path=folder,
                    seed=seed,
                    output_dir=str(RUNS / f"{data_set.lower()}-{arm.replace(', ', '-').replace(' ', '')}-{seed}"),
                    **BUDGET,
                    **DATA[data_set],
                )
                config.resume = "last" if (Path(str(config.output_dir)) / "config.yaml").exists() else None
                metrics = freqformer.train(config)
                result = {
                    # The last epoch's: choosing the best one would choose by the test images.
                    "top1": metrics["epochs"][-1]["val/top1"],
                    "top1_of_epochs": [round(epoch["val/top1"], 4) for epoch in metrics["epochs"]],
                    "loss_of_epochs": [round(epoch["train/loss"], 4) for epoch in metrics["epochs"]],
                    "parameters": _parameters(network, DATA[data_set]["input_size"]),
                    "mlp_ratio": round(network["mlp_ratio"], 3),
                    "train_seconds": metrics["train_seconds"],
                }
                append_rows(ROWS, [make_row("accuracy", setting, result, dtype=_precision(), device="cpu")])


def time_steps(rounds: int = 15) -> None:
    """Time a training step of every arm, one after the other in each round, and keep the medians."""
    seconds: dict[tuple[str, str], list[float]] = {}
    steps = {(data_set, arm): _step(arm, data_set) for data_set in DATA for arm in ARMS}
    for round_ in range(rounds + 2):
        for key, step in steps.items():
            started = time.perf_counter()
            step()
            if round_ > 1:
                seconds.setdefault(key, []).append(time.perf_counter() - started)
    for (data_set, arm), times in seconds.items():
        setting = {"data_set": data_set, "arm": arm, "batch_size": BUDGET["batch_size"], "rounds": rounds}
        result = {"step_seconds": statistics.median(times), "least": min(times), "most": max(times)}
        append_rows(ROWS, [make_row("time", setting, result, dtype=_precision(), device="cpu")])


def report(docs: Path) -> None:
    """Put the tables between the marks of ``evidence.md`` and draw its pictures."""
    rows = read_rows(ROWS)
    parts = []
    for data_set in DATA:
        table = Figure(figsize=(9, 4), layout="constrained")
        axes = table.subplots()
        lines = ["| arm | parameters | MLP ratio | top-1 %, mean ± std | each seed | ms a step | s an epoch |"]
        lines.append("|---|---|---|---|---|---|---|")
        for arm in ARMS:
            found = [row["result"] for row in _chosen(rows, "accuracy", data_set, arm)]
            if not found:
                continue
            scores = [100 * result["top1"] for result in found]
            spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
            times = _chosen(rows, "time", data_set, arm)
            step = times[-1]["result"]["step_seconds"] if times else None
            steps = BUDGET["limit_train"] // BUDGET["batch_size"]
            timing = f"{1000 * step:.1f} | {step * steps:.1f}" if step else "- | -"
            lines.append(
                f"| {arm} | {found[0]['parameters']:,} | {found[0]['mlp_ratio']:.2f} | "
                f"{statistics.mean(scores):.2f}{spread} | {', '.join(f'{s:.2f}' for s in scores)} | {timing} |"
            )
            curves = torch.tensor([result["top1_of_epochs"] for result in found]) * 100
            epochs = range(1, curves.shape[1] + 1)
            (line,) = axes.plot(epochs, curves.mean(0), marker=".", label=arm)
            axes.fill_between(epochs, curves.amin(0), curves.amax(0), alpha=0.15, color=line.get_color())
        axes.set(title=data_set, xlabel="epoch", ylabel="test top-1 in %, mean and range of the seeds")
        axes.grid(alpha=0.3)
        axes.legend()
        picture = f"evidence-{data_set.lower().replace('_', '-')}.png"
        table.savefig(docs / "pictures" / picture, dpi=110)
        parts += [f"### {data_set}", "", *lines, "", f"![{data_set}](pictures/{picture})", ""]
    page = docs / "evidence.md"
    start, end = "<!-- tables -->\n", "<!-- end of tables -->\n"
    before, _, rest = page.read_text().partition(start)
    _, _, after = rest.partition(end)
    text = before + start + "\n" + "\n".join(parts) + end + after
    write_whole(page, lambda path: path.write_text(text))
    print(page)


def _step(arm: str, data_set: str) -> Any:
    size = DATA[data_set]["input_size"]
    model = _make(arguments(arm, data_set), size)
    optimizer = torch.optim.AdamW(model.parameters())
    image, target = torch.randn(BUDGET["batch_size"], 3, size, size), torch.randint(10, (BUDGET["batch_size"],))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=_precision() == "bfloat16"):
            loss = nn.functional.cross_entropy(model(image), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _make(network: dict[str, Any], size: int) -> nn.Module:
    return freqformer.create_model("freqformer_n", num_classes=10, img_size=size, **network)


def _parameters(network: dict[str, Any], size: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in _make(network, size).parameters())


def _precision() -> str:
    return {"bf16-mixed": "bfloat16"}.get(resolve_precision("auto", "cpu"), "float32")


def _key(setting: dict[str, Any]) -> tuple[Any, ...]:
    return setting["data_set"], setting["arm"], setting.get("seed")


def _chosen(rows: list[Row], what: str, data_set: str, arm: str) -> list[Row]:
    return [row for row in rows if row["what"] == what and _key(row["setting"])[:2] == (data_set, arm)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", help="folder of CIFAR-10's shards or archive")
    parser.add_argument("--fashion-mnist", help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--time", action="store_true", help="time a training step of each arm")
    parser.add_argument("--report", type=Path, metavar="DOCS", help="write the tables and pictures")
    args = parser.parse_args()
    folders = {"CIFAR10": args.cifar10, "FASHION_MNIST": args.fashion_mnist}
    given = {name: folder for name, folder in folders.items() if folder}
    if not (given or args.time or args.report):
        parser.error("name a data set's folder, --time or --report")
    try:
        if given:
            train_missing(given)
        if args.time:
            time_steps()
        if args.report:
            report(args.report)
    except freqformer.FreqFormerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
