"""Run a task: the same for every task, from a config to a folder of results."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from ..checkpoints import WEIGHTS_FILE, epochs_done, read_description, read_weights, write_whole
from ..data import mix
from ..errors import FreqFormerError
from ..launchers import only_the_first_complains, restarts
from ..report import REPORT, write_report
from ..tasks import RunConfig, Task
from .bad_images import BadImages
from .callbacks import BestModel, EvaluateEvery, Record, write_metrics
from .datamodule import RunData, worker_deaths
from .environment import record_start
from .evaluate import validate
from .evaluations import draw
from .failures import NonFiniteLoss, explained
from .lightning import keep_freed_memory, progress_bars, quiet, resolve_precision, wrong_settings
from .position import Pace, Position
from .processes import on_first, rank, together, world_size
from .saving import KeepEpochs, SaveByTheClock
from .signals import StopOnSignal
from .storage import (
    AVERAGE_WEIGHTS,
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    METRICS,
    RAW_WEIGHTS,
    WholeFiles,
    last_checkpoint,
    prepare_folder,
    require_space,
)
from .strategies import load_whole, require_strategy, trainer_arguments

RESUME_LAST = "last"


def run(config: RunConfig) -> dict[str, Any]:
    """Train as a config says, evaluate the best epoch, and leave everything in the run's folder.

    It works in as many processes as the config or a launcher says; process 0 alone writes and prints.

    Args:
        config: the run's settings; its ``build()`` makes the task and the samples.

    Returns:
        What ``metrics.json`` holds: ``epochs``, a dict of figures each, ``best``, the figures of the exported
        model, ``raw``, those of its weights when it is their moving average, ``average``, those of the last epochs'
        mean when it was asked for, ``trained_parameters`` and ``train_seconds``.

    Raises:
        FreqFormerError: unusable settings, data, checkpoint or output folder.
        Interrupted: a signal stopped the run; its state is saved.
    """
    with only_the_first_complains():
        config.check()
        require_strategy(config)
    return together(_run, config)


def _run(config: RunConfig) -> dict[str, Any]:
    folder = Path(config.output_dir or config.default_output_dir())
    config, checkpoint, finished = on_first(lambda: _where_to_start(config, folder))
    if finished is not None:
        return finished

    keep_freed_memory()
    torch.manual_seed(mix(config.seed))
    task, train, val = config.build()
    data = RunData(config, train, val)
    problems = data.problems()
    batches = len(data.sampler())
    task.steps_per_epoch = math.ceil(batches / config.accumulate)
    trained = sum(parameter.numel() for parameter in task.model.parameters() if parameter.requires_grad)
    position = Position(Pace(config.batch_size * world_size(), batches, task.steps_per_epoch, config.accumulate))
    best = BestModel(folder, folder / CHECKPOINTS / "best.ckpt")
    record = Record(folder)
    keep = KeepEpochs(folder, config.average_checkpoints)
    stop = StopOnSignal(last_checkpoint(folder))
    bad = BadImages(config.max_bad_images, folder)
    own: list[Callback] = [
        bad,
        position,
        EvaluateEvery(config.eval_every),
        record,
        NonFiniteLoss(folder, config.skip_nan),
        best,
        stop,
    ]
    if config.save_every_minutes is not None:
        own.append(SaveByTheClock(last_checkpoint(folder), config.save_every_minutes))
    with quiet(), wrong_settings():
        # What a state needs beside itself is kept before it.
        trainer = _trainer(config, folder, task.monitor, [keep], own)
    # Whatever can be refused is refused before the folder is touched.
    task.optimization(task.steps_per_epoch, world_size())
    on_first(lambda: _prepare(config, folder, task, checkpoint, trainer.precision))
    if rank() == 0:
        print(_summary(task, data, trainer, folder), flush=True)
        for split, found in problems.items():
            print(f"{split}: {', '.join(f'{count} {what}' for what, count in found.items())}", flush=True)
    started = time.monotonic()
    with (
        stop.watching(),
        quiet(),
        explained(config, folder),
        worker_deaths("; continue with --resume"),
        _page_of_a_stop(folder, record),
    ):
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        seconds = round(time.monotonic() - started, 2)
        on_first(best.export)
        if config.average_checkpoints:
            on_first(lambda: keep.average(task, config.all_epochs(), folder / AVERAGE_WEIGHTS))
        figures = _evaluate_kept(config, folder, task, data, bad)
    metrics = {
        "epochs": record.history,
        **figures,
        **({"data_problems": problems} if problems else {}),
        "parameters": _parameters(task),
        "trained_parameters": trained,
        "images_per_epoch": batches * config.batch_size * world_size(),
        "train_seconds": seconds,
    }
    on_first(lambda: _finish(config, task, folder, metrics, bad))
    return metrics


@contextmanager
def _page_of_a_stop(folder: Path, record: Record) -> Iterator[None]:
    """Let a run that is stopped or fails leave the page of the epochs it has done; resuming writes it anew."""
    try:
        yield
    except BaseException:
        if rank() == 0 and record.history:
            # The state is saved by now. What ended the run matters more than a page that cannot be written.
            with suppress(Exception):
                write_report(folder)
        raise


def _evaluate_kept(
    config: RunConfig, folder: Path, task: Task, data: RunData, bad: BadImages
) -> dict[str, dict[str, Any]]:
    """The figures of each set of weights that the run leaves; the best epoch's come last, and are what is drawn."""
    kept = {
        # A best epoch from before the average was asked for has none.
        **({"raw": RAW_WEIGHTS} if config.model_ema and (folder / RAW_WEIGHTS).exists() else {}),
        **({"average": AVERAGE_WEIGHTS} if config.average_checkpoints else {}),
        "best": WEIGHTS_FILE,
    }
    figures = {}
    for name, weights in kept.items():
        load_whole(task.model, read_weights(folder / weights))
        loader = data.val_dataloader()
        figures[name] = validate(task, loader, config.precision, config.accelerator, config.strategy, bad)
    return figures


def _where_to_start(config: RunConfig, folder: Path) -> tuple[RunConfig, Path | None, dict[str, Any] | None]:
    """The config as it is to be followed, the checkpoint to go on from, and the metrics when nothing is left to do."""
    if restarts() and _is_run_of(config, folder):
        # torchrun has started all processes anew after one of them died, or SLURM the job. Before its first save the
        # run begins again, from the checkpoint that its line names.
        begun = last_checkpoint(folder).exists() or config.resume is None
        config = replace(config, resume=RESUME_LAST if begun else config.resume, overwrite=False)
    checkpoint = _checkpoint_to_resume(config, folder)
    finished = _finished(config, folder)
    if finished is not None:
        print(f"{folder} is a finished run of {len(finished['epochs'])} epochs; nothing is left to do", flush=True)
        if (folder / ENVIRONMENT).exists() and not (folder / REPORT).exists():
            # It was killed after its last figure.
            write_report(folder)
    return config, checkpoint, finished


def _prepare(config: RunConfig, folder: Path, task: Task, checkpoint: Path | None, precision: str) -> None:
    """Refuse what cannot work, then make the folder and write the config into it."""
    if checkpoint is not None and read_description(checkpoint) != task.describe():
        raise FreqFormerError(f"{checkpoint} holds another model than this run's: check the model, size and data set")
    require_space(folder, _parameters(task), config.average_checkpoints)
    prepare_folder(folder, resume=config.resume is not None, overwrite=config.overwrite)
    text = _settings(config, folder)
    write_whole(folder / CONFIG, lambda path: path.write_text(text))
    if config.resume is not None:
        # That of an earlier end says nothing of what is to come.
        (folder / REPORT).unlink(missing_ok=True)
    record_start(folder, config.accelerator, precision, resumed=config.resume is not None)


def _settings(config: RunConfig, folder: Path) -> str:
    """What ``config.yaml`` holds."""
    settings = {**asdict(config), "output_dir": str(folder), "resume": None, "overwrite": False}
    return yaml.safe_dump(settings, sort_keys=False)


def _is_run_of(config: RunConfig, folder: Path) -> bool:
    path = folder / CONFIG
    return path.is_file() and path.read_text() == _settings(config, folder)


def _summary(task: Task, data: RunData, trainer: Trainer, folder: Path) -> str:
    images = f"{len(data.train)} training and {len(data.val)} validation images"
    processes = f"{world_size()} processes, " if world_size() > 1 else ""
    trained = sum(parameter.numel() for parameter in task.model.parameters() if parameter.requires_grad)
    frozen = f" ({trained:,} trained)" if trained < _parameters(task) else ""
    return (
        f"{type(task).__name__}: {_parameters(task) / 1e6:.2f} M parameters{frozen}, {images}, {processes}"
        f"precision {trainer.precision}, folder {folder}"
    )


def _parameters(task: Task) -> int:
    return sum(parameter.numel() for parameter in task.model.parameters())


def _finish(config: RunConfig, task: Task, folder: Path, metrics: dict[str, Any], bad: BadImages) -> None:
    if skipped := bad.summary():
        print(skipped, flush=True)
    task.keep(folder)
    # With its figures the run is finished, whatever becomes of the pictures.
    write_metrics(folder, metrics)
    draw(folder, task, folder if config.strategy == "fsdp" else None)


def _trainer(config: RunConfig, folder: Path, monitor: str, before: list[Callback], after: list[Callback]) -> Trainer:
    bars = progress_bars()
    logs = CSVLogger(folder, name="logs")
    processes = trainer_arguments(config.accelerator, config.strategy)
    return Trainer(
        **{**processes, "plugins": [*processes["plugins"], WholeFiles()]},
        max_epochs=config.all_epochs(),
        precision=resolve_precision(config.precision, config.accelerator),  # type: ignore[arg-type]
        gradient_clip_val=config.clip_grad,
        accumulate_grad_batches=config.accumulate,
        deterministic=config.deterministic,
        callbacks=[
            *([EMAWeightAveraging(decay=config.model_ema_decay)] if config.model_ema else []),
            *bars,
            # Lightning calls those that keep checkpoints last, in this order.
            *before,
            _keep(folder / CHECKPOINTS / "best.ckpt", monitor),
            _keep(last_checkpoint(folder), None),
            *after,
        ],
        logger=[logs, TensorBoardLogger(folder, name="logs", version=logs.version, default_hp_metric=False)],
        log_every_n_steps=10,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_progress_bar=bool(bars),
        enable_model_summary=False,
    )


def _keep(path: Path, monitor: str | None) -> ModelCheckpoint:
    """Keep one checkpoint up to date: of the best epoch, or of the last."""
    return ModelCheckpoint(
        dirpath=path.parent,
        filename=path.stem,
        monitor=monitor,
        mode="max",
        save_top_k=1,
        save_on_train_epoch_end=True,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )


def _checkpoint_to_resume(config: RunConfig, folder: Path) -> Path | None:
    """The checkpoint to go on from; None starts at step 0, also for a run that was stopped before its first."""
    if config.resume is None:
        return None
    if config.resume == RESUME_LAST:
        checkpoint = last_checkpoint(folder)
        if not (folder / CONFIG).exists():
            raise FreqFormerError(f"{folder} holds no run to resume: check --output-dir, or leave out --resume")
        if not checkpoint.exists():
            return None
    else:
        checkpoint = Path(config.resume)
        outside = folder.resolve() not in checkpoint.resolve().parents
        if last_checkpoint(folder).exists() and outside:
            raise FreqFormerError(f"{folder} holds another run than {checkpoint}: choose another --output-dir")
    epochs = epochs_done(checkpoint)
    if epochs >= config.all_epochs() and not (folder / CHECKPOINTS / "best.ckpt").exists():
        raise FreqFormerError(
            f"{checkpoint} has done its {epochs} epochs: raise --epochs, or resume it in its own folder"
        )
    return checkpoint


def _finished(config: RunConfig, folder: Path) -> dict[str, Any] | None:
    """The metrics of the run to resume, when none of its epochs is left."""
    path = folder / METRICS
    if config.resume is None or not path.exists():
        return None
    metrics = json.loads(path.read_text())
    return metrics if "best" in metrics and len(metrics["epochs"]) >= config.all_epochs() else None
