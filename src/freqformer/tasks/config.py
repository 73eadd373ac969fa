"""The settings that every task's run shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from ..errors import FreqFormerError

if TYPE_CHECKING:
    from ..data import Seeded
    from .task import Task


@dataclass
class RunConfig:
    """Optimisation, engine and output of a run; the defaults are GFNet's training script's."""

    command: ClassVar[str] = "train"
    """The command that takes it."""

    epochs: int = 300
    """Passes over the training split."""
    batch_size: int = 128
    """Images per process and micro-batch."""
    accumulate: int = 1
    """Micro-batches whose gradients are added up before each step of the optimiser."""
    opt: str = "adamw"
    """Optimiser, by timm's name."""
    momentum: float = 0.9
    """Momentum of SGD."""
    opt_eps: float | None = None
    """The optimiser's epsilon; by default its own."""
    opt_betas: tuple[float, float] | None = None
    """Adam's betas; by default the optimiser's own."""
    lr: float = 5e-4
    """Learning rate for lr_base_batch images a step; scaled linearly with the images of a step."""
    lr_base_batch: int | None = 512
    """The batch that lr is meant for; none takes lr as it is."""
    sched: str = "cosine"
    """Learning-rate schedule, by timm's name, followed step by step."""
    sched_by_epoch: bool = False
    """Follow the schedule epoch by epoch: all steps of one have the learning rate of its first."""
    min_lr: float = 1e-5
    """Learning rate at the end of the schedule."""
    decay_epochs: float = 30.0
    """Epochs between the decays of the schedule `step`."""
    decay_milestones: list[int] = field(default_factory=lambda: [90, 180, 270])
    """Epochs after which the schedule `multistep` decays."""
    decay_rate: float = 0.1
    """Factor of each decay of the schedules `step` and `multistep`; the power of `poly`."""
    warmup_lr: float = 1e-6
    """Learning rate at the start of the warm-up."""
    warmup_epochs: float | None = None
    """Epochs of warm-up; by default 5, or a fifth of a run shorter than 25 epochs."""
    warmup_prefix: bool = False
    """Begin the schedule after the warm-up, for the epochs that are left; otherwise the warm-up hides its beginning."""
    cooldown_epochs: int = 0
    """Epochs at min_lr after those of the schedule cosine, tanh or poly."""
    weight_decay: float = 0.05
    """Weight decay; norms, biases and position embeddings have none."""
    decay_all: bool = False
    """Weight decay of everything but the classifier's bias."""
    layer_decay: float | None = None
    """Each group of layers learns at this share of the rate of the group above it; none: all alike."""
    clip_grad: float | None = 1.0
    """Largest gradient norm; none does not clip."""
    model_ema: bool = False
    """Keep an exponential moving average of the weights; it is evaluated, and kept beside the weights."""
    model_ema_decay: float = 0.99996
    """Decay of the average per step."""
    average_checkpoints: int = 0
    """Also keep the weights of the last so many epochs, and evaluate and keep their mean at the end."""
    skip_nan: int = 0
    """Pass over this many steps whose loss is no number before the run stops."""
    grad_checkpointing: bool = False
    """Keep the activations of blocks at their borders alone, and compute the rest twice."""
    precision: str = "auto"
    """Lightning's value, such as 32-true, bf16-mixed or 16-mixed; auto is bf16-mixed where the hardware has it."""
    compile: bool = False
    """Compile the network with torch.compile."""
    eval_every: int = 1
    """Evaluate after every so many epochs, and after the last; only then an epoch can become the best."""
    aug_repeats: int = 1
    """How often an epoch takes an image, augmented anew each time; its steps stay, so it sees fewer images."""
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
    devices: int | str = "auto"
    """Processes on this node, each with a GPU of its own or a share of the CPU; auto is what torchrun, mpirun or SLURM
    started, or one."""
    num_nodes: int = 1
    """Nodes; torchrun, mpirun and SLURM say it themselves."""
    strategy: str = "auto"
    """What several processes do: ddp keeps a copy of the model in each, fsdp a shard; auto is ddp."""
    output_dir: str | None = None
    """The run's folder; by default one under runs/."""
    resume: str | None = None
    """Continue from this checkpoint; without a value from the output folder's last one."""
    save_every_minutes: float | None = None
    """Save the run's state this often within an epoch too; it is always saved at an epoch's end."""
    overwrite: bool = False
    """Replace the run that the output folder holds."""

    def build(self) -> tuple[Task, Seeded, Seeded]:
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
        require(self.accumulate >= 1, "--accumulate", "at least 1", self.accumulate)
        require(self.eval_every >= 1, "--eval-every", "at least 1", self.eval_every)
        require(self.average_checkpoints >= 0, "--average-checkpoints", "0 or more", self.average_checkpoints)
        require(self.skip_nan >= 0, "--skip-nan", "0 or more", self.skip_nan)
        require(
            self.save_every_minutes is None or self.save_every_minutes > 0,
            "--save-every-minutes",
            "more than 0",
            self.save_every_minutes,
        )
        require(
            self.layer_decay is None or 0 < self.layer_decay <= 1,
            "--layer-decay",
            "above 0, at most 1",
            self.layer_decay,
        )
        require(self.cooldown_epochs >= 0, "--cooldown-epochs", "0 or more", self.cooldown_epochs)
        require(self.decay_epochs > 0, "--decay-epochs", "more than 0", self.decay_epochs)
        require(
            all(low < high for low, high in zip([0, *self.decay_milestones], self.decay_milestones, strict=False)),
            "--decay-milestones",
            "growing, from 1",
            self.decay_milestones,
        )
        require(0 < self.decay_rate <= 1, "--decay-rate", "above 0, at most 1", self.decay_rate)
        require(self.aug_repeats >= 0, "--aug-repeats", "0 or more", self.aug_repeats)
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
        require(
            not self.warmup_prefix or self.warmup() < self.epochs,
            "--warmup-epochs",
            f"less than --epochs {self.epochs} with --warmup-prefix",
            self.warmup_epochs,
        )
        require(
            not self.decay_all or self.layer_decay is None, "--layer-decay", "none with --decay-all", self.layer_decay
        )
        require(0 <= self.model_ema_decay < 1, "--model-ema-decay", "between 0 and 1", self.model_ema_decay)

    def scaled_lr(self, processes: int = 1) -> float:
        """The learning rate of a run on a number of processes."""
        if self.lr_base_batch is None:
            return self.lr
        return self.lr * self.batch_size * self.accumulate * processes / self.lr_base_batch

    def all_epochs(self) -> int:
        """The epochs of the schedule and of the cool-down, which other schedules than timm's cyclic ones lack."""
        return self.epochs + (self.cooldown_epochs if self.sched in ("cosine", "tanh", "poly") else 0)

    def warmup(self) -> float:
        """The epochs of warm-up."""
        return min(5.0, self.epochs / 5) if self.warmup_epochs is None else self.warmup_epochs


def require(holds: bool, flag: str, range_: str, value: object) -> None:
    """Raise FreqFormerError unless a flag's value is in its range."""
    if not holds:
        raise FreqFormerError(f"{flag} must be {range_}, not {value}")
