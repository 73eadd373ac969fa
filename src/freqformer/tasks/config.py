"""The settings that every task's run shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import FreqFormerError

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from .task import Task


@dataclass
class RunConfig:
    """Optimisation, engine and output of a run; the defaults are GFNet's training script's."""

    epochs: int = 300
    """Passes over the training split."""
    batch_size: int = 128
    """Images per process and step."""
    opt: str = "adamw"
    """Optimiser, by timm's name."""
    momentum: float = 0.9
    """Momentum of SGD."""
    lr: float = 5e-4
    """Learning rate for lr_base_batch images a step; scaled linearly with the global batch."""
    lr_base_batch: int | None = 512
    """The batch that lr is meant for; none takes lr as it is."""
    sched: str = "cosine"
    """Learning-rate schedule, by timm's name, followed step by step."""
    min_lr: float = 1e-5
    """Learning rate at the end of the schedule."""
    warmup_lr: float = 1e-6
    """Learning rate at the start of the warm-up."""
    warmup_epochs: float | None = None
    """Epochs of warm-up; by default 5, or a fifth of a run shorter than 25 epochs."""
    weight_decay: float = 0.05
    """Weight decay; norms, biases and position embeddings have none."""
    clip_grad: float | None = 1.0
    """Largest gradient norm; none does not clip."""
    model_ema: bool = False
    """Keep an exponential moving average of the weights; it is what is evaluated and kept."""
    model_ema_decay: float = 0.99996
    """Decay of the average per step."""
    precision: str = "auto"
    """Lightning's value, such as 32-true, bf16-mixed or 16-mixed; auto is bf16-mixed where the hardware has it."""
    compile: bool = False
    """Compile the network with torch.compile."""
    num_workers: int = 2
    """Processes that load images."""
    max_bad_images: int = 100
    """Images that cannot be read are skipped and listed in bad_images.csv; more than this many stop the run."""
    seed: int = 0
    """All randomness is a function of it."""
    deterministic: bool = False
    """Refuse operations that have no deterministic implementation."""
    accelerator: str = "auto"
    """Lightning's value: auto, cpu or gpu."""
    output_dir: str | None = None
    """The run's folder; by default one under runs/."""
    resume: str | None = None
    """Continue from this checkpoint; without a value from the output folder's last one."""
    overwrite: bool = False
    """Replace the run that the output folder holds."""

    def build(self) -> tuple[Task, Dataset, Dataset]:
        """The task and its training and validation samples; every task's config has its own."""
        raise TypeError(f"{type(self).__name__} belongs to no task: use that of a task, such as ClassificationConfig")

    def default_output_dir(self) -> str:
        """The run's folder when none is named."""
        return "runs/latest"

    def check(self) -> None:
        """Refuse settings outside their range.

        Raises:
            FreqFormerError: naming the flag.
        """
        require(self.epochs >= 1, "--epochs", "at least 1", self.epochs)
        require(self.batch_size >= 1, "--batch-size", "at least 1", self.batch_size)
        require(self.num_workers >= 0, "--num-workers", "0 or more", self.num_workers)
        require(self.max_bad_images >= 0, "--max-bad-images", "0 or more", self.max_bad_images)
        require(self.seed >= 0, "--seed", "0 or more", self.seed)
        for name in ("lr", "min_lr", "warmup_lr", "weight_decay", "momentum"):
            require(getattr(self, name) >= 0, f"--{name.replace('_', '-')}", "0 or more", getattr(self, name))
        require(
            self.lr_base_batch is None or self.lr_base_batch >= 1,
            "--lr-base-batch",
            "at least 1, or none",
            self.lr_base_batch,
        )
        require(self.clip_grad is None or self.clip_grad > 0, "--clip-grad", "more than 0, or none", self.clip_grad)
        require(
            0 <= self.warmup() <= self.epochs,
            "--warmup-epochs",
            f"between 0 and --epochs {self.epochs}",
            self.warmup_epochs,
        )
        require(0 <= self.model_ema_decay < 1, "--model-ema-decay", "between 0 and 1", self.model_ema_decay)

    def scaled_lr(self, processes: int = 1) -> float:
        """The learning rate of a run on a number of processes."""
        if self.lr_base_batch is None:
            return self.lr
        return self.lr * self.batch_size * processes / self.lr_base_batch

    def warmup(self) -> float:
        """The epochs of warm-up."""
        return min(5.0, self.epochs / 5) if self.warmup_epochs is None else self.warmup_epochs


def require(holds: bool, flag: str, range_: str, value: object) -> None:
    """Raise FreqFormerError unless a flag's value is in its range."""
    if not holds:
        raise FreqFormerError(f"{flag} must be {range_}, not {value}")
