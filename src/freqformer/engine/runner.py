"""Run a task: the same for every task, from a config to a folder of results."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from ..checkpoints import epochs_done, read_description, read_weights, write_whole
from ..data import mix
from ..errors import FreqFormerError
from ..tasks import RunConfig
from .bad_images import BadImages
from .callbacks import BestModel, Record, StopOnSignal, write_metrics
from .datamodule import RunData, worker_deaths
from .evaluate import validate
from .lightning import keep_freed_memory, progress_bars, quiet, resolve_precision, wrong_settings
from .storage import CHECKPOINTS, CONFIG, METRICS, WholeFiles, last_checkpoint, prepare_folder, require_space

RESUME_LAST = "last"


def run(config: RunConfig) -> dict[str, Any]:
    """Train as a config says, evaluate the best epoch, and leave everything in the run's folder.

    Args:
        config: the run's settings; its ``build()`` makes the task and the samples.

    Returns:
        What ``metrics.json`` holds: ``epochs``, a dict of figures each, ``best``, the figures of the exported
        model, and ``train_seconds``.

    Raises:
        FreqFormerError: unusable settings, data, checkpoint or output folder.
        Interrupted: a signal stopped the run; its state is saved.
    """
    config.check()
    folder = Path(config.output_dir or config.default_output_dir())
    checkpoint = _checkpoint_to_resume(config, folder)
    finished = _finished(config, folder)
    if finished is not None:
        print(f"{folder} is a finished run of {len(finished['epochs'])} epochs; nothing is left to do", flush=True)
        return finished

    keep_freed_memory()
    torch.manual_seed(mix(config.seed))
    task, train, val = config.build()
    data = RunData(config, train, val)
    task.steps_per_epoch = len(data.sampler())
    best = BestModel(folder, folder / CHECKPOINTS / "best.ckpt")
    record = Record(folder)
    stop = StopOnSignal(last_checkpoint(folder))
    bad = BadImages(config.max_bad_images, folder)
    with quiet(), wrong_settings():
        trainer = _trainer(config, folder, task.monitor, [bad, record, best, stop])
    # Whatever can be refused is refused before the folder is touched.
    task.optimization(task.steps_per_epoch)
    if checkpoint is not None and read_description(checkpoint) != task.describe():
        raise FreqFormerError(f"{checkpoint} holds another model than this run's: check the model, size and data set")
    parameters = sum(p.numel() for p in task.model.parameters())
    require_space(folder, parameters)
    prepare_folder(folder, resume=config.resume is not None, overwrite=config.overwrite)
    settings = {**asdict(config), "output_dir": str(folder), "resume": None, "overwrite": False}
    text = yaml.safe_dump(settings, sort_keys=False)
    write_whole(folder / CONFIG, lambda path: path.write_text(text))

    print(
        f"{type(task).__name__}: {parameters / 1e6:.2f} M parameters, {len(train)} training and "  # type: ignore[arg-type]
        f"{len(val)} validation images, precision {trainer.precision}, folder {folder}",  # type: ignore[arg-type]
        flush=True,
    )
    started = time.monotonic()
    with stop.watching(), quiet(), worker_deaths("; continue with --resume"):
        try:
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except torch.OutOfMemoryError as error:
            raise FreqFormerError(f"out of memory with --batch-size {config.batch_size}: lower it") from error
        seconds = round(time.monotonic() - started, 2)
        best.export()
        task.model.load_state_dict(read_weights(folder))
        figures = validate(task, data.val_dataloader(), config.precision, config.accelerator, bad)
    if skipped := bad.summary():
        print(skipped, flush=True)
    task.draw(folder)
    metrics = {"epochs": record.history, "best": figures, "train_seconds": seconds}
    write_metrics(folder, metrics)
    return metrics


def _trainer(config: RunConfig, folder: Path, monitor: str, own: list[Callback]) -> Trainer:
    bars = progress_bars()
    logs = CSVLogger(folder, name="logs")
    return Trainer(
        max_epochs=config.epochs,
        accelerator=config.accelerator,
        devices=1,
        precision=resolve_precision(config.precision, config.accelerator),  # type: ignore[arg-type]
        gradient_clip_val=config.clip_grad,
        deterministic=config.deterministic,
        callbacks=[
            *([EMAWeightAveraging(decay=config.model_ema_decay)] if config.model_ema else []),
            *bars,
            # Lightning calls those that keep checkpoints last, in this order.
            _keep(folder / CHECKPOINTS / "best.ckpt", monitor),
            _keep(last_checkpoint(folder), None),
            *own,
        ],
        logger=[logs, TensorBoardLogger(folder, name="logs", version=logs.version, default_hp_metric=False)],
        plugins=[WholeFiles()],
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
        if (folder / CONFIG).exists() and outside:
            raise FreqFormerError(f"{folder} holds another run than {checkpoint}: choose another --output-dir")
    epochs = epochs_done(checkpoint)
    if epochs >= config.epochs and not (folder / CHECKPOINTS / "best.ckpt").exists():
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
    return metrics if "best" in metrics and len(metrics["epochs"]) >= config.epochs else None
