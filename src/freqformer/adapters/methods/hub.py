"""Methods of Hugging Face PEFT: LoRA, VeRA, BOFT, FourierFT and whatever else has a ``PeftConfig``."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import FreqFormerError, MissingExtra
from ..handle import Handle
from ..projections import join, linear_maps, replace, split

# What FreqFiT's configuration has where PEFT's default is another.
_UPSTREAM: dict[str, dict[str, Any]] = {
    "LORA": {"r": 8, "lora_alpha": 8},
    "VERA": {"r": 256, "vera_dropout": 0.1},
    "BOFT": {"boft_block_size": 4, "boft_n_butterfly_factor": 2, "boft_dropout": 0.1},
    "FOURIERFT": {"n_frequency": 3000, "scaling": 300.0},
}
_ALIASES = {"FFT": "FOURIERFT"}


class HubHandle(Handle):
    """A method of PEFT on a model; ``options`` is its ``PeftConfig``."""

    foldable = True
    replaces = True
    rewrites = True

    def __init__(self, model: nn.Module, adapters: Any, options: Any) -> None:
        super().__init__(model, adapters, options)
        self.name = options.peft_type.value.lower()  # type: ignore[misc]

    def build(self) -> None:
        """Let PEFT put its layers in place of the blocks' linear maps, with query, key and value apart."""
        from peft import get_peft_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        config = self.options
        if getattr(config, "modules_to_save", None):
            raise FreqFormerError("modules_to_save is not taken: train the classifier with the method linear beside it")
        if getattr(config, "bias", "none") != "none":
            raise FreqFormerError("PEFT's bias is not taken: train the biases with the method bias beside it")
        if self.name == "adalora":
            raise FreqFormerError("AdaLoRA is not taken: it has to be told of every step of the optimiser; take lora")
        if str(getattr(config, "init_lora_weights", "")).startswith("pissa_niter"):
            raise FreqFormerError("pissa_niter draws its factors at random, so that it could not be loaded: take pissa")
        config.inference_mode = False
        targets = getattr(config, "target_modules", None)
        self.apart = targets is None or re.search(r"\b(query|key|value)\b", str(targets)) is not None
        if self.apart:
            split(self.adapters, self.name)
        try:
            if targets is None:
                config.target_modules = self._maps()
        except FreqFormerError:
            self._rejoin()
            raise
        linears = {name: m.weight for name, m in self.model.named_modules() if isinstance(m, nn.Linear)}
        before = {name: weight.detach().clone() for name, weight in linears.items() if not weight.is_meta}
        why = None
        try:
            self.tuner = get_peft_model(self.model, config)
        except Exception as error:
            why = _first_line(error)
        layers = {name: m for name, m in self.model.named_modules() if isinstance(m, BaseTunerLayer)}
        # Initialisations such as PiSSA's take from the frozen weights what they give to the adapter.
        self.rewritten = [
            (linears[name], value)
            for name, value in before.items()
            if name in layers and not torch.equal(linears[name], value)
        ]
        if why is None:
            why = self._cannot_return(config)
        if why is None and (silent := next((name for name in layers if name in self.backbone.bypassed), None)):
            why = f"the model never calls {silent}, so that nothing in its place would act; name other modules"
        if why is not None:
            # PEFT may have failed half-way.
            for name, layer in layers.items():
                replace(self.model, name, layer.get_base_layer())
            self._restore()
            self._leave()
            raise FreqFormerError(f"PEFT cannot put {self.name} on {self.backbone.name}: {why}")
        self.layers: list[Any] = list(layers.values())
        self.parts = [name for name, parameter in self.tuner.named_parameters() if parameter.requires_grad]

    def _cannot_return(self, config: Any) -> str | None:
        """Why a file of this method could not be read again, if so."""
        if feeds := getattr(config, "feedforward_modules", None):
            # PEFT shortens the targets' names, and IA3 wants these among them.
            ends = tuple(f".{feed}" for feed in ([feeds] if isinstance(feeds, str) else feeds))
            config.feedforward_modules = {name for name in config.target_modules if f".{name}".endswith(ends)}
        try:
            restored(self.describe()["options"])
        except FreqFormerError as error:
            return f"it could not be loaded again ({error})"
        return None

    def _maps(self) -> set[str]:
        """The linear maps to adapt where the user names none."""
        maps = set(linear_maps(self.backbone, self.model, self.name))
        layers = getattr(self.options, "layers_to_transform", None)
        if layers is None:
            return maps
        # PEFT does not look at it where targets are whole names.
        blocks = {layers} if isinstance(layers, int) else set(layers)
        chosen = {name for name in maps if int(name.removeprefix(f"{self.backbone.path}.").partition(".")[0]) in blocks}
        if not chosen:
            raise FreqFormerError(f"layers_to_transform {sorted(blocks)} names none of {self.backbone.depth} blocks")
        return chosen

    def named(self) -> dict[str, nn.Parameter]:
        """PEFT's own parameters."""
        found = dict(self.tuner.named_parameters())
        return {name: found[name] for name in self.parts}

    def state_dict(self) -> dict[str, Tensor]:
        """What PEFT would save."""
        from peft import get_peft_model_state_dict

        self._require_live("state_dict")
        return {name: value.detach() for name, value in get_peft_model_state_dict(self.tuner).items()}

    def fill(self, state: Mapping[str, Tensor]) -> None:
        """Take over what PEFT has saved."""
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.tuner, dict(state))

    def modules(self) -> list[nn.Module]:
        """PEFT's layers; some look at their own mode, not only their dropouts."""
        return list(self.layers)

    def describe(self) -> dict[str, Any]:
        """The method and its config as plain containers."""
        given = {key: _plain(value) for key, value in self.options.to_dict().items()}
        return {"method": self.name, "options": {k: v for k, v in given.items() if v is not None}}

    def into_weights(self) -> None:
        """Merged into the linear maps."""
        try:
            self.tuner.merge_and_unload()
        except Exception as error:
            raise FreqFormerError(f"PEFT cannot merge {self.name} into the weights: {_first_line(error)}") from error
        self._leave()

    def unbuild(self) -> None:
        """Put the linear maps back."""
        self.tuner.unload()
        self._restore()
        self._leave()

    def write(self, folder: Path) -> None:
        """PEFT's own files in a folder."""
        self.tuner.save_pretrained(str(folder), save_embedding_layers=False)

    def _restore(self) -> None:
        with torch.no_grad():
            for weight, value in self.rewritten:
                weight.copy_(value)

    def _leave(self) -> None:
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        self._rejoin()

    def _rejoin(self) -> None:
        if self.apart:
            join(self.adapters, self.name)


def hub_names() -> list[str]:
    """The names of PEFT's methods, where it is installed."""
    try:
        from peft import PeftType
    except ModuleNotFoundError:
        return []
    return [name.lower() for name in PeftType.__members__]


def hub_config(name: str, options: Mapping[str, Any]) -> Any | None:
    """PEFT's config of a method by name, filled; None where PEFT has no such method.

    Raises:
        FreqFormerError: it has no such field, or needs a language model.
        MissingExtra: PEFT is not installed.
    """
    try:
        from peft import PeftType, PromptLearningConfig
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ModuleNotFoundError as error:
        raise MissingExtra("peft", "adapt") from error
    key = name.upper()
    key = _ALIASES.get(key, key)
    if key not in PeftType.__members__:
        return None
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[key]]
    if issubclass(kind, PromptLearningConfig):
        raise FreqFormerError(f"PEFT's {name} is for language models: for prompts take vpt_shallow or vpt_deep")
    known = kind.__dataclass_fields__
    if unknown := [field for field in options if field not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(sorted(known))}"
        raise FreqFormerError(f"{kind.__name__} has no field {unknown[0]!r}: {hint}")
    try:
        return kind(**{**_UPSTREAM.get(key, {}), **options})
    except (TypeError, ValueError) as error:
        raise FreqFormerError(f"{kind.__name__} refuses its fields: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def restored(options: Mapping[str, Any]) -> Any:
    """PEFT's config from the plain containers that `HubHandle.describe` made of it.

    Raises:
        MissingExtra: PEFT is not installed.
        FreqFormerError: they are none.
    """
    try:
        from peft import PeftConfig
    except ModuleNotFoundError as error:
        raise MissingExtra("peft", "adapt") from error
    try:
        return PeftConfig.from_peft_type(**options)
    except (TypeError, ValueError, KeyError) as error:
        raise FreqFormerError(f"PEFT does not know these settings of a method: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value.value if hasattr(value, "value") else value
