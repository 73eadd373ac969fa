"""Methods that train parts of the model itself: the classifier, all biases, everything."""

import re
from typing import Any

from torch import Tensor, nn

from ...errors import FreqFormerError
from ..handle import Handle, method
from ..projections import join, split

# What other methods put around a linear map.
_AROUND = re.compile(r"\b(?:base_layer|base)\.")


class _Tuned(Handle):
    """Trains parameters of the model where they are."""

    foldable = True
    kept: dict[str, Tensor]

    def named(self) -> dict[str, nn.Parameter]:
        """The parameters by their names in the model, whatever other methods have put around them."""
        outside = (*(f"{path}." for path in classifier_paths(self.model)), "adapters.")
        others = [handle for handle in self.adapters.handles.values() if not isinstance(handle, _Tuned)]
        taken = {id(p) for handle in others for p in handle.parameters()}
        return {
            _AROUND.sub("", name): parameter
            for name, parameter in self.model.named_parameters()
            if id(parameter) not in taken and self.chooses(name, name.startswith(outside))
        }

    def chooses(self, name: str, outside: bool) -> bool:
        """Whether a parameter is trained: its name, and whether it lies in the classifier or an adapter."""
        raise NotImplementedError

    def build(self) -> None:
        """Remember what the parameters were."""
        if not self.named():
            raise FreqFormerError(f"{self.name} finds nothing to train in {self.backbone.name}")
        self.kept = {name: parameter.detach().clone() for name, parameter in self.named().items()}

    def unbuild(self) -> None:
        """Give the parameters back their values."""
        for name, parameter in self.named().items():
            parameter.copy_(self.kept[name])


@method("linear", "head")
class Linear(_Tuned):
    """Linear probing: the classifier alone."""

    def chooses(self, name: str, outside: bool) -> bool:
        """What ``pretrained_cfg`` calls the classifier."""
        return outside and not name.startswith("adapters.")

    def describe(self) -> dict[str, Any]:
        """The method, and how many classes there are."""
        return {**super().describe(), "num_classes": getattr(self.model, "num_classes", None)}

    def modules(self) -> list[nn.Module]:
        """The classifier and the dropout before it."""
        paths = [*classifier_paths(self.model), "head_drop"]
        return [self.model.get_submodule(path) for path in paths if hasattr(self.model, path.partition(".")[0])]


@method("bias", "bitfit", "tinytl-bias", "tinytl_bias")
class Bias(_Tuned):
    """BitFit: every bias of the backbone (Ben Zaken et al., ACL 2022); FreqFiT calls it tinytl-bias."""

    def chooses(self, name: str, outside: bool) -> bool:
        """What is called bias, q_bias or v_bias; tables of position biases are none."""
        return not outside and name.rpartition(".")[2] in ("bias", "q_bias", "v_bias")

    def build(self) -> None:
        """Remember the biases, of query, key and value apart: then they keep their names beside other methods."""
        split(self.adapters, self.name)
        super().build()

    def into_weights(self) -> None:
        """They are where they should be."""
        join(self.adapters, self.name)

    def unbuild(self) -> None:
        """Give the biases back their values."""
        super().unbuild()
        join(self.adapters, self.name)


@method("full", "end2end", "finetune")
class Full(_Tuned):
    """Full fine-tuning of the backbone."""

    def chooses(self, name: str, outside: bool) -> bool:
        """Everything but the classifier."""
        return not outside

    def build(self) -> None:
        """Keep no copy of the weights: there would be two of each."""
        if self.adapters.split_by:
            other = sorted(self.adapters.split_by)[0]
            raise FreqFormerError(f"full fine-tuning does not go with {other}: it trains every weight as it is")

    def modules(self) -> list[nn.Module]:
        """The whole model."""
        return [self.model]

    def detach(self) -> None:
        """Refuse: no copy of the weights was kept."""
        raise FreqFormerError("full fine-tuning changed the weights themselves: make the model again to have the old")

    def unbuild(self) -> None:
        """There is nothing to give back."""


def classifier_paths(model: nn.Module) -> list[str]:
    """The names of a model's classifiers."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    named = cfg.get("classifier") or "head"
    paths = [named] if isinstance(named, str) else list(named)
    return [path for path in paths if _part(model, path)]


def _part(model: nn.Module, path: str) -> list[tuple[str, nn.Parameter]]:
    try:
        return list(model.get_submodule(path).named_parameters())
    except AttributeError:
        return []
