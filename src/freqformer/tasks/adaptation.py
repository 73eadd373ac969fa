"""Fine-tuning a frozen encoder by adapters."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ..adapters import METHODS, attach, save_all, set_mode
from ..adapters.handle import ALIASES
from ..errors import FreqFormerError
from ..factory import create_encoder, describe_model
from .classification import Classification
from .config import require
from .images import ImagesConfig, preprocessing

ADAPTERS = "adapters"
"""The folder within a run's that holds what was learned alone."""


@dataclass
class AdaptationConfig(ImagesConfig):
    """An adaptation run: encoder, methods, data and augmentation besides what every run has."""

    command: ClassVar[str] = "adapt"

    encoder: str = "sup_vitb16_imagenet21k"
    """What is adapted: FreqFit's names (sup_vitb16_imagenet21k, sup_vitl16_imagenet21k, mae_vitb16, mocov3_vitb16,
    clip_vitb16), any timm model of blocks, an isotropic one of this package, or a run's folder."""
    encoder_args: dict[str, Any] = field(default_factory=dict)
    """Further keywords of the encoder, such as global_pool."""
    encoder_weights: str | None = None
    """A weight file for the encoder in place of the published one."""
    weights_root: str = "pretrained"
    """The folder of the files that FreqFit's names stand for; what is absent is fetched into it."""
    pretrained: bool = True
    """Start from pre-trained weights."""
    method: str = "lora"
    """linear, bias, adapter, vpt_shallow, vpt_deep, rlrr, full, or a method of Hugging Face PEFT: lora, vera, boft,
    fourierft and others."""
    freqfit: str = "filter2d"
    """The frequency module beside it: filter2d (FreqFit), filter2d_real (FreqFit*), filter1d, ssf or none."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the method and the frequency module, each of which is a flag too."""
    peft: dict[str, Any] = field(default_factory=dict)
    """Fields of PEFT's config, such as --peft.r 8 --peft.lora_alpha 8."""
    epochs: int = 100
    """Passes over the training split."""
    batch_size: int = 64
    """Images per process and micro-batch."""
    lr: float = 1e-3
    """Learning rate, as it is."""
    lr_base_batch: int | None = None
    """The batch that lr is meant for; none takes lr as it is."""
    weight_decay: float = 1e-4
    """Weight decay; norms and biases have none, unless decay_all says so."""
    smoothing: float = 0.0
    """Label smoothing."""
    mixup: float = 0.0
    """Mixup's alpha; 0 is off."""
    cutmix: float = 0.0
    """CutMix's alpha; 0 is off. With mixup on too, each batch draws one of them."""
    aa: str = "none"
    """timm's auto-augment policy; none is off."""
    interpolation: str | None = None
    """How images are resized; none: as the encoder says."""
    scale: tuple[float, float] = (0.35, 1.0)
    """Smallest and largest share of the image's area that a random crop takes, where it is resized."""

    def __post_init__(self) -> None:
        # Upstream's words.
        self.freqfit = ALIASES.get(self.freqfit.lower(), self.freqfit.lower())
        self.method = ALIASES.get(self.method.lower(), self.method.lower())

    def check(self) -> None:
        """Refuse settings outside their range; raises FreqFormerError."""
        super().check()
        choices = (*(name for name, kind in METHODS.items() if kind.between_blocks), "none")
        require(self.freqfit in choices, "--freqfit", f"one of {', '.join(choices)}", self.freqfit)
        require(self.strategy != "fsdp", "--strategy", "ddp: few parameters are trained", self.strategy)

    def make_task(self, label_names: Sequence[str]) -> "Adaptation":
        """The task, with a new classifier for these classes.

        Raises:
            FreqFormerError: the encoder cannot be made, or the methods do not fit it.
        """
        model, arguments = create_encoder(
            self.encoder,
            num_classes=len(label_names),
            img_size=self.input_size,
            weights=self.encoder_weights,
            weights_root=self.weights_root,
            pretrained=self.pretrained,
            **self.encoder_args,
        )
        model.pretrained_cfg = preprocessing(self, model.pretrained_cfg)  # type: ignore[arg-type,assignment]
        self.adapt(model)
        return Adaptation(self, model=model, label_names=label_names, arguments=arguments)

    def adapt(self, model: nn.Module) -> None:
        """Put the methods onto a model: the classifier, the method, the frequency module.

        Raises:
            FreqFormerError: a method or an option that does not fit.
        """
        options = dict(self.options)
        attach(model, "linear")
        for name in (self.method, self.freqfit):
            if name in ("linear", "none"):  # The classifier is always trained.
                continue
            kind = METHODS.get(ALIASES.get(name, name))
            if kind is None:
                attach(model, name, **self.peft)
                continue
            own = {option.name for option in fields(kind.Options)} & options.keys()
            attach(model, name, **{option: options.pop(option) for option in own})
        if options:
            flag = next(iter(options)).replace("_", "-")
            raise FreqFormerError(
                f"--{flag} is an option of neither --method {self.method} nor --freqfit {self.freqfit}"
            )
        if self.peft and self.method in METHODS:
            raise FreqFormerError(f"--peft is for methods of Hugging Face PEFT, and {self.method} is none of them")

    def default_output_dir(self) -> str:
        """The run's folder when none is named."""
        parts = [self.method, self.freqfit] if self.freqfit != "none" else [self.method]
        words = [Path(self.encoder).name, *parts, self.data_set]
        return "runs/" + "-".join(re.sub(r"[^\w.]+", "-", word.lower()).strip("-") for word in words)


class Adaptation(Classification):
    """Trains adapters and a classifier on a frozen encoder; usable in your own ``lightning.Trainer``.

    Args:
        config: the run's settings.
        model: the encoder with its adapters.
        label_names: names of the targets, in order.
        arguments: the keywords that the encoder was made with.
    """

    def __init__(
        self, config: AdaptationConfig, *, model: Any, label_names: Sequence[str], arguments: dict[str, Any]
    ) -> None:
        super().__init__(config, model=model, label_names=label_names)
        self.arguments = arguments

    def train(self, mode: bool = True) -> "Adaptation":
        """Training mode of the adapters and the classifier; the frozen encoder stays in evaluation mode."""
        super().train(mode)
        set_mode(self.model, mode)
        return self

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of its model: the encoder, and the adapters on it."""
        return describe_model(self.model, self.arguments, self.label_names)

    def keep(self, folder: Path) -> None:
        """Write what was learned alone, besides what every classifier leaves, into the run's folder."""
        super().keep(folder)
        save_all(self.model, folder / ADAPTERS)
