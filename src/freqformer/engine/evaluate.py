"""Evaluate a task or a checkpoint on a validation split."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Trainer
from timm.layers import to_2tuple
from torch.utils.data import DataLoader

from ..data import Seeded, open_images
from ..errors import FreqFormerError
from ..factory import load_classifier
from ..tables import write_csv
from ..tasks import Classification, ClassificationConfig, Task, evaluation_samples, require, require_size
from ..visualize.frequencies import band_pass
from .bad_images import BadImages
from .datamodule import evaluation_loader, worker_deaths
from .evaluations import folder_of, require_folder, write_folder
from .lightning import progress_bars, quiet, resolve_precision, wrong_settings
from .processes import gathered, on_first, together
from .strategies import require_strategy, trainer_arguments


@dataclass
class AnyEvaluation:
    """What every task's evaluation is told."""

    model_path: str
    """A run's folder, or a .ckpt, .pth, .safetensors or .onnx file."""
    data_path: str | None = None
    """The folder the data set lies in."""
    split: str = "val"
    """What to evaluate on: val, or another split of the data set, such as test or train."""
    limit: int | None = None
    """Evaluate on this many images only, of a fixed shuffled order that has every class early."""
    band: tuple[float, float] | None = None
    """Keep these frequencies of the images alone, and their mean: [from, to], as shares of the Nyquist frequency, of
    which 1.42 is above all. A classifier's and a segmenter's are filtered after they are resized, a
    detector's before it resizes them."""
    batch_size: int = 128
    """Images per process and step."""
    num_workers: int = 2
    """Processes that load images."""
    max_bad_images: int = 100
    """Images that cannot be read are left out and counted; more than this many stop the evaluation."""
    precision: str = "auto"
    """Lightning's value, such as 32-true or bf16-mixed; auto is bf16-mixed where the hardware has it."""
    accelerator: str = "auto"
    """Lightning's value: auto, cpu or gpu."""
    devices: int | str = "auto"
    """Processes on this node, each with a GPU of its own or a share of the CPU; auto is what torchrun, mpirun or SLURM
    started, or one."""
    num_nodes: int = 1
    """Nodes; torchrun, mpirun and SLURM say it themselves."""
    strategy: str = "auto"
    """What several processes do: ddp keeps a copy of the model in each, fsdp a shard; auto is ddp."""
    output_dir: str | None = None
    """Write a page, the figures, each class's scores and pictures into this folder; auto is a new one under runs/."""
    overwrite: bool = False
    """Replace the files of an earlier evaluation there."""

    def check(self) -> None:
        """Refuse settings outside their range, and a folder that would lose something; raises FreqFormerError."""
        require_strategy(self)
        require(self.limit is None or self.limit >= 1, "--limit", "at least 1", self.limit)
        in_order = self.band is None or 0 <= self.band[0] <= self.band[1]
        require(in_order, "--band", "0 or more, the second no less than the first", self.band)
        require_folder(self.output_dir, overwrite=self.overwrite)
        require(self.batch_size >= 1, "--batch-size", "at least 1", self.batch_size)
        require(self.num_workers >= 0, "--num-workers", "0 or more", self.num_workers)
        require(self.max_bad_images >= 0, "--max-bad-images", "0 or more", self.max_bad_images)


@dataclass
class EvaluationConfig(AnyEvaluation):
    """Which classifier to evaluate, and on which images."""

    arch: str | None = None
    """The model's name; only bare weights need it."""
    data_set: str = "IMNET"
    """IMNET or FOLDER (val/ of class folders), CARS, FLOWERS, PETS, INAT, INAT19, FGVC (JSON splits),
    FASHION_MNIST, MNIST, CIFAR10, CIFAR100, WDS (tar shards), DIGITS, a task of VTAB-1k (cifar100, clevr-count ...)
    or hf:NAME (of Hugging Face, or hf:FOLDER)."""
    input_size: int | tuple[int, int] | None = None
    """Image side in pixels, or [height, width]; by default what the checkpoint was trained at."""
    crop_pct: float | None = None
    """Share of the resized image to keep; by default the checkpoint's."""
    interpolation: str | None = None
    """How images are resized; by default the checkpoint's."""
    per_class: str | None = None
    """Write each class's number of images and accuracy to this CSV file."""

    def check(self) -> None:
        """Refuse settings outside their range; raises FreqFormerError."""
        super().check()
        require(self.crop_pct is None or 0 < self.crop_pct <= 1, "--crop-pct", "above 0, at most 1", self.crop_pct)
        require_size(self.input_size)
        if self.per_class is not None and not Path(self.per_class).parent.is_dir():
            raise FreqFormerError(f"cannot write {self.per_class}: its folder does not exist")


def evaluate(config: EvaluationConfig) -> dict[str, Any]:
    """Evaluate a classifier's checkpoint, in as many processes as the config or a launcher says.

    Args:
        config: what to evaluate, on which images.

    Returns:
        ``top1`` and ``top5`` (shares), ``loss``, ``images`` (those that could be read), ``bad_images`` (those that
        could not), ``seconds`` and ``images_per_second``, and ``output_dir``, where something is written.

    Raises:
        FreqFormerError: an unusable checkpoint or data set, or one with other classes.
    """
    return together(_evaluate, config)


def _evaluate(config: EvaluationConfig) -> dict[str, Any]:
    config.check()
    model = load_classifier(config.model_path, arch=config.arch)
    changes = {
        "input_size": (3, *to_2tuple(config.input_size)) if config.input_size is not None else None,
        "crop_pct": config.crop_pct,
        "interpolation": config.interpolation,
    }
    if config.input_size is not None and hasattr(model, "set_input_size"):
        # An adapted model of timm takes one size at a time; its position embedding is resampled, its filters follow.
        resize: Any = model.set_input_size
        resize(img_size=to_2tuple(config.input_size))
    cfg = {**model.pretrained_cfg, **{key: value for key, value in changes.items() if value is not None}}
    model.pretrained_cfg = cfg
    names = cfg.get("label_names")
    images = open_images(config.data_set, config.data_path, config.split, classes=names, limit=config.limit)
    if len(images.classes) != model.num_classes:
        raise FreqFormerError(
            f"class-count mismatch: the data has {len(images.classes)} classes and the model {model.num_classes}; "
            "use the data set that the model was trained on"
        )
    task = Classification(ClassificationConfig(), model=model, label_names=images.classes)
    task.val = images
    samples = evaluation_samples(model, images)
    if config.band is not None:
        samples.transform = partial(_filtered, samples.transform, config.band)

    def more() -> dict[str, Any]:
        if config.per_class is not None:
            path = Path(config.per_class)
            on_first(lambda: write_csv(path, task.per_class()))
        return {}

    return evaluated(config, "eval", task, samples, more)


def _filtered(transform: Any, band: tuple[float, float], image: Any) -> Any:
    return band_pass(transform(image), *band)


def evaluated(
    config: AnyEvaluation, command: str, task: Task, samples: Seeded, more: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Evaluate a task as a config says, and write down what was found.

    Args:
        config: the evaluation's settings.
        command: what is typed after ``freqformer``.
        task: what is evaluated.
        samples: on what.
        more: further figures, once it is done.

    Returns:
        Those of `validate`, these, and ``output_dir``, where something is written.
    """
    loader = evaluation_loader(samples, config.batch_size, config.num_workers)
    with folder_of(config) as folder:
        bad = BadImages(config.max_bad_images)
        with worker_deaths():
            figures = validate(task, loader, config.precision, config.accelerator, config.strategy, bad)
        try:
            figures |= more()
            if folder is not None:
                on_first(lambda: write_folder(folder, command, config, task, figures))
        except Exception as error:
            # An hour's figures are not lost with a picture: the command line prints them before the error.
            error.figures = figures  # type: ignore[attr-defined]
            raise
        if folder is not None:
            figures["output_dir"] = str(folder)
    return figures


def validate(
    task: Task,
    loader: DataLoader,
    precision: str,
    accelerator: str,
    strategy: str = "auto",
    bad: BadImages | None = None,
) -> dict[str, Any]:
    """Evaluate a task on a loader, which has this process's share of the images.

    Args:
        task: what is evaluated.
        loader: batches, as ``evaluation_loader`` makes them.
        precision: Lightning's value, or "auto".
        accelerator: Lightning's value, or "auto".
        bad: counts the images that cannot be read; by default none may.

    Returns:
        The task's metrics without their ``val/``, and ``images`` (those that could be read), ``bad_images``,
        ``seconds`` and ``images_per_second``.

    Raises:
        FreqFormerError: too many images, or all of them, cannot be read.
    """
    bad = BadImages(0) if bad is None else bad
    bars = progress_bars()
    with quiet():
        with wrong_settings():
            trainer = Trainer(
                **trainer_arguments(accelerator, strategy),
                precision=resolve_precision(precision, accelerator),  # type: ignore[arg-type]
                logger=False,
                callbacks=[*bars, bad],
                enable_progress_bar=bool(bars),
                enable_model_summary=False,
                enable_checkpointing=False,
                use_distributed_sampler=False,
            )
        started = time.monotonic()
        try:
            (metrics,) = trainer.validate(task, loader, verbose=False)
        except SystemExit as error:
            # Lightning's answer to Ctrl-C.
            raise KeyboardInterrupt from error
        seconds = time.monotonic() - started
    left_out = sum(gathered(bad.left_out))
    images = len(loader.dataset) - left_out  # type: ignore[arg-type]
    return {
        **{name.removeprefix("val/"): float(value) for name, value in metrics.items()},
        "images": images,
        "bad_images": left_out,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 1),
    }
