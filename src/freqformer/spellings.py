"""The papers' and timm's spellings of the flags of ``train`` and ``eval``, in this package's.

Every flag of GFNet's, SpectFormer's and FreqFormer's ``main_*.py``, ``main_*_transfer.py`` and ``infer.py`` and of
DFFormer's ``train.py`` (timm 0.5.4's) is a field of the config by its own name or stands in one of these tables.
"""

from dataclasses import dataclass
from pathlib import Path

from .errors import FreqFormerError

SAME = {
    "-b": "--batch-size",
    "-j": "--num-workers",
    "--workers": "--num-workers",
    "--model": "--arch",
    "--img-size": "--input-size",
    "--data-dir": "--data-path",
    "--initial-checkpoint": "--finetune",
    "--head-dropout": "--drop",
    "--device": "--accelerator",
    "--dr": "--decay-rate",
    "--grad-accum-steps": "--accumulate",
    "--update-freq": "--accumulate",
}
"""Another name for the same flag."""

MEANS = {
    "--amp": ("--precision", "auto"),
    "--native-amp": ("--precision", "auto"),
    "--repeated-aug": ("--aug-repeats", "3"),
    "--no-repeated-aug": ("--aug-repeats", "1"),
}
"""A switch that other flags say."""

ONLY = {
    "--mixup-mode": ("batch",),
    "--clip-mode": ("norm",),
    "--eval-metric": ("top1",),
    "--inat-category": ("name",),
    "--worker-seeding": ("all",),
    "--aug-splits": ("0",),
    "--epoch-repeats": ("0", "0.0"),
    "--lr-noise": ("none",),
    "--lr-cycle-mul": ("1", "1.0"),
    "--lr-cycle-limit": ("1",),
    "--lr-k-decay": ("1", "1.0"),
    "--mixup-off-epoch": ("0",),
    "--cutmix-minmax": ("none",),
    "--tta": ("0",),
    "--dist-bn": ("broadcast",),
}
"""A flag with a value that is always this here."""

IDLE = {
    "--pin-mem": (0, "it moves no figure"),
    "--no-pin-mem": (0, "it moves no figure"),
    "--channels-last": (0, "the networks are channels-last already"),
    "--no-prefetcher": (0, "there is no prefetcher"),
    "--use-multi-epochs-loader": (0, "the loader's processes live through all epochs"),
    "--use-mcloader": (0, "images are read from files"),
    "--model-ema-force-cpu": (0, "the average lies beside the weights"),
    "--dist-eval": (0, "every process evaluates its part"),
    "--mpi": (0, "processes are taken from the environment"),
    "--dist-url": (1, "processes are taken from the environment"),
    "--world-size": (1, "processes are taken from the environment, or from --devices"),
    "--local-rank": (1, "processes are taken from the environment"),
    "--validation-batch-size": (1, "it moves no figure"),
    "-vb": (1, "it moves no figure"),
    "--log-interval": (1, "logs/ has its own"),
    "--checkpoint-hist": (1, "the last and the best epoch are kept"),
    "--patience-epochs": (1, "it belongs to the schedule plateau"),
    "--lr-noise-pct": (1, "it belongs to --lr-noise"),
    "--lr-noise-std": (1, "it belongs to --lr-noise"),
    "--lr-cycle-decay": (1, "it belongs to --lr-cycle-limit"),
}
"""A flag that changes nothing here: the number of its values, and why."""

IDLE_IN_EVAL = {"--seed": (1, "evaluation draws nothing")}

REFUSED = {
    "-c": "give --config a run's config.yaml",
    "--eval": "use `freqformer eval --model-path RUN`",
    "--start-epoch": "use --resume, whose checkpoint knows its epoch",
    "--throughput": "use `freqformer bench model`",
    "-d": "use --data-set",
    "--dataset": "use --data-set",
    "--dataset-download": "download the data set, then use --data-path",
    "--class-map": "classes are numbered in the order of their names",
    "--num-classes": "the data set has its number of classes",
    "--mean": "the model has its own normalisation",
    "--std": "the model has its own normalisation",
    "--pretrained": "use --finetune with a weight file",
    "--no-resume-opt": "use --finetune with the checkpoint",
    "--gp": "the model has its own pooling",
    "--drop-connect": "use --drop-path",
    "--drop-block": "use --drop-path",
    "--resplit": "augmentation is not split",
    "--jsd-loss": "the losses are cross-entropy, distillation and token labels",
    "--bce-loss": "the losses are cross-entropy, distillation and token labels",
    "--bce-target-thresh": "the losses are cross-entropy, distillation and token labels",
    "--split-bn": "the batch is not split",
    "--bn-momentum": "the model has its own",
    "--bn-eps": "the model has its own",
    "--no-ddp-bb": "running statistics are those of the first process",
    "--no-aug": "use --aa none --hflip 0 --mixup 0 --cutmix 0",
    "--apex-amp": "use --amp",
    "--fp32-resume": "use --precision 32-true",
    "--torchscript": "use --compile",
    "--fuser": "use --compile",
    "--recovery-interval": "use --save-every-minutes",
    "--save-images": "`freqformer visualize` draws",
    "--log-wandb": "logs/ has CSV and TensorBoard files",
    "--log-clearml": "logs/ has CSV and TensorBoard files",
    "--log-s3": "the run's folder keeps everything",
    "--output-uri": "use --output-dir",
}
"""A flag that is not there, and what to use in its place."""

# timm names a run's folder by three flags: OUTPUT/EXPERIMENT/TASK.
_FOLDER = ("--output", "--experiment", "--task-name")
DEFAULT_OUTPUT = "output/train"
"""timm's OUTPUT where the line has none."""


@dataclass
class Line:
    """A command line in this package's spelling."""

    words: list[str]
    timm: bool
    """Whether it says ``--model``, as timm does, and so means timm's defaults."""
    notes: list[str]
    """Its flags that change nothing here, and why."""


def translate(words: list[str], *, idle: dict[str, tuple[int, str]] | None = None) -> Line:
    """Spell a command line as this package does.

    Args:
        words: the command line after the command.
        idle: more flags that change nothing, as in ``IDLE``.

    Raises:
        FreqFormerError: a flag that is not there; it says what to use.
    """
    idle = {**IDLE, **(idle or {})}
    rest = [part for word in words for part in _short(word)]
    result: list[str] = []
    folder: dict[str, str] = {}
    notes: list[str] = []
    timm = False
    while rest:
        word = rest.pop(0)
        spelt, equals, value = word.partition("=")
        flag = spelt.replace("_", "-") if spelt.startswith("--") else spelt
        if flag in REFUSED:
            raise FreqFormerError(f"there is no flag {flag}: {REFUSED[flag]}")
        if equals and flag in {*ONLY, *idle, *_FOLDER}:
            rest.insert(0, value)
        if flag in ONLY:
            given = _value(rest)
            if given is None or given.lower() not in ONLY[flag]:
                raise FreqFormerError(f"{flag} can only be {ONLY[flag][0]}, not {given or 'nothing'}")
        elif flag in idle:
            number, why = idle[flag]
            for _ in range(max(number, len(equals))):
                _value(rest)
            notes.append(f"{flag} changes nothing: {why}")
        elif flag in _FOLDER:
            folder[flag] = _value(rest) or ""
        elif flag in MEANS and not equals:
            result += MEANS[flag]
        else:
            timm = timm or flag == "--model"
            result.append(SAME.get(flag, spelt) + equals + value)
            if flag == "--input-size" and len(rest) > 2 and all(number.isdigit() for number in rest[:3]):
                # timm's is channels, height, width.
                rest.pop(0)
    if folder and not any(word.partition("=")[0] in ("--output-dir", "--output_dir") for word in result):
        result += ["--output-dir", _folder(folder, result)]
    return Line(result, timm, notes)


def help_text() -> str:
    """What ``--help`` says of these spellings."""
    same = ", ".join(f"{theirs} is {ours}" for theirs, ours in SAME.items())
    return (
        f"The papers' and timm's lines mean what they do there: {same}, --amp and --native-amp are --precision auto, "
        "--output, --experiment and --task-name are parts of --output-dir, --repeated-aug is --aug-repeats 3. "
        "With --model the defaults are timm's, `freqformer recipes timm`: the learning rate is for the batch as it "
        "is, and the precision float32. With --finetune nothing is dropped unless --drop-path says so."
    )


def _short(word: str) -> list[str]:
    """``-b128`` as two words."""
    for flag in ("-b", "-j"):
        if word.startswith(flag) and word[len(flag) :].isdigit():
            return [flag, word[len(flag) :]]
    return [word]


def _value(rest: list[str]) -> str | None:
    """Take a flag's value from the words after it."""
    return rest.pop(0) if rest and not rest[0].startswith("--") else None


def _folder(given: dict[str, str], words: list[str]) -> str:
    """timm's folder of a run; without the name of an experiment the model's, where timm takes the time."""
    pairs = zip(words, [*words[1:], ""], strict=False)
    arch = next((word.partition("=")[2] or after for word, after in pairs if word.partition("=")[0] == "--arch"), "run")
    output = given.get("--output") or DEFAULT_OUTPUT
    return str(Path(output, given.get("--experiment") or arch, given.get("--task-name", "")))
