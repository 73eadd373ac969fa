"""What a method leaves on a model: a handle that trains, saves, folds and removes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import FreqFormerError
from .backbone import Backbone, Grid, Tokens, grid_of, patch_embedding

NAME = "adapters"
"""The name under which a model keeps its adapters' modules."""


@dataclass
class NoOptions:
    """Options of a method that has none."""


class Adapters(nn.Module):
    """The adapters of one model: the modules of each, and what they do between the blocks.

    Args:
        model: the model to adapt.

    Raises:
        FreqFormerError: it has no sequence of blocks.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = Backbone(model)
        self.handles: dict[str, Handle] = {}
        self.grid: Grid | None = self.backbone.grid
        self.prompts = 0
        """Prompt tokens in the sequence, all the way."""
        self.split_by: set[str] = set()
        """Those that need query, key and value apart."""
        self.steps: list[list[Handle]] = []
        """Those that act before each block and after the last, in their order."""
        self.trained_before = {name: p.requires_grad for name, p in model.named_parameters()}
        blocks = self.backbone.blocks
        self.hooks = [block.register_forward_pre_hook(partial(_before, self, i)) for i, block in enumerate(blocks)]
        self.hooks.append(blocks[-1].register_forward_hook(partial(_after, self, len(blocks))))
        if self.backbone.shows_grid and (embedding := patch_embedding(model)) is not None:
            self.hooks.append(embedding.register_forward_hook(partial(_note_grid, self)))

    def at(self, place: int, x: Tensor) -> Tensor:
        """What the adapters make of the tokens before block ``place``, or after the last."""
        for handle in self.steps[place]:
            x = handle.at(place, x, Tokens(self.grid, self.backbone.prefix, self.prompts))
        return x

    def arrange(self) -> None:
        """Put those that act between the blocks in order, after one came or went."""
        acting = [handle for handle in self.handles.values() if type(handle).at is not Handle.at]
        places = range(self.backbone.depth + 1)
        # Their names settle what is left open: adapters that are loaded in another order act as they did.
        self.steps = [sorted(acting, key=lambda handle: (handle.order(place), handle.name)) for place in places]

    def leave(self, model: nn.Module) -> None:
        """Leave the model with what was trained in it before."""
        for hook in self.hooks:
            hook.remove()
        delattr(model, NAME)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.trained_before.get(name, True))


def _before(adapters: Adapters, place: int, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return adapters.at(place, args[0]), *args[1:]


def _after(adapters: Adapters, place: int, block: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return adapters.at(place, output)


def _note_grid(adapters: Adapters, embedding: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    adapters.grid = grid_of(embedding, args[0], output)


def follow(module: nn.Module, by: nn.Module) -> RemovableHandle:
    """Let a module act on whatever another returns, until the hook is removed."""
    return module.register_forward_hook(partial(_pass_on, by))


def _pass_on(by: nn.Module, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return by(output)


class Handle:
    """A method on a model. Subclasses build it, name what it trains, fold it and take it away.

    Args:
        model: the model.
        adapters: the model's.
        options: the method's ``Options``.
    """

    name: ClassVar[str]
    Options: ClassVar[type] = NoOptions
    foldable: ClassVar[bool] = False
    """Whether `fold` can put it where it costs nothing, or less."""
    rewrites: ClassVar[bool] = False
    """Whether folding changes the backbone's own weights."""
    tunes_backbone: ClassVar[bool] = False
    """Whether it trains the backbone's own weights."""
    between_blocks: ClassVar[bool] = False
    """Whether it is a frequency module, which goes beside another method."""
    needs: ClassVar[str] = ""
    """What a model must have to run with it, for the error of one that does not."""
    replaces: ClassVar[bool] = False
    """Whether it puts modules of its own in the place of the blocks' linear maps, as one method can at a time."""

    def __init__(self, model: nn.Module, adapters: Adapters, options: Any) -> None:
        self.model, self.adapters, self.options = model, adapters, options
        self.folded = False

    @property
    def backbone(self) -> Backbone:
        """The model's blocks."""
        return self.adapters.backbone

    # What a method says of itself.

    def build(self) -> None:
        """Put the method onto the model.

        Raises:
            FreqFormerError: the model or the options do not allow it.
        """
        raise NotImplementedError

    def named(self) -> dict[str, nn.Parameter]:
        """What it trains, by the names that its files use."""
        raise NotImplementedError

    def unbuild(self) -> None:
        """Take the method from the model, which is then what it was before."""
        raise NotImplementedError

    def into_weights(self) -> None:
        """Put what was learned where it costs nothing, or as little as can be; called where ``foldable``."""

    def at(self, place: int, x: Tensor, tokens: Tokens) -> Tensor:
        """What the method makes of the tokens before block ``place``, or after the last; most leave them."""
        return x

    def order(self, place: int) -> int:
        """Which of the methods that act at a place come first: the lower."""
        return 1

    def modules(self) -> list[nn.Module]:
        """The modules that are in training mode while the frozen backbone is in evaluation mode."""
        return [self.module] if self.module is not None else []

    def translate(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A state dict of another code, or of another grid, in this handle's own names and shapes."""
        return state

    def fill(self, state: Mapping[str, Tensor]) -> None:
        """Take over the values of a state whose names and shapes are this handle's."""
        for name, parameter in self.named().items():
            parameter.copy_(state[name])

    # What is the same for all.

    @property
    def module(self) -> nn.Module | None:
        """The method's own modules within the model's ``adapters``."""
        return self.adapters._modules.get(self.name)

    def keep(self, module: nn.Module) -> nn.Module:
        """Make a module part of the model, on its device; half precision is trained in float32."""
        reference = next(p for p in self.model.parameters() if p.is_floating_point())
        half = reference.dtype in (torch.float16, torch.bfloat16)
        self.adapters.add_module(self.name, module.to(reference.device, torch.float32 if half else reference.dtype))
        return module

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the method trains."""
        return iter(self.named().values())

    def state_dict(self) -> dict[str, Tensor]:
        """What was learned, by name; the tensors are those of the model, not copies."""
        self._require_live("state_dict")
        return {name: parameter.detach() for name, parameter in self.named().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what was learned elsewhere, in this package's names or in upstream's.

        Args:
            state: as `state_dict` returns it; filters of another grid are resampled. Of FreqFiT's own checkpoints
                the keys of its filters, scales and shifts are found and their first axis, the block, taken apart.

        Raises:
            FreqFormerError: names or shapes do not fit.
        """
        self._require_live("load_state_dict")
        own = self.state_dict()
        given = dict(self.translate(state))
        missing, unknown = own.keys() - given.keys(), given.keys() - own.keys()
        if missing or unknown:
            what = f"lacks {sorted(missing)[0]}" if missing else f"has {sorted(unknown)[0]}, which is not known here"
            raise FreqFormerError(f"the state does not fit {self.name} on {self.backbone.name}: it {what}")
        for name, value in own.items():
            if value.shape != given[name].shape:
                raise FreqFormerError(
                    f"the state does not fit {self.name} on {self.backbone.name}: {name} is {tuple(given[name].shape)} "
                    f"and must be {tuple(value.shape)}"
                )
        with torch.no_grad():
            self.fill(given)

    def describe(self) -> dict[str, Any]:
        """The method and its options as plain containers, from which `attach` makes it again."""
        folded = {"folded": True} if self.folded else {}
        return {"method": self.name, "options": asdict(self.options), **folded}

    def save(self, path: str | Path) -> None:
        """Write what was learned into a folder, with what it belongs to; `freqformer.adapters.load` reads it.

        Args:
            path: the folder, made when absent; an adapter that it holds is replaced.

        Raises:
            FreqFormerError: it was folded, or cannot be written.
        """
        from .storage import save

        self._require_live("save")
        save(self, Path(path))

    def fold(self) -> None:
        """Make inference as cheap as it can be; outputs change by no more than rounding, training is over.

        Raises:
            FreqFormerError: the method cannot be folded, or was already.
        """
        self._require_live("fold")
        if not self.foldable:
            raise FreqFormerError(f"{self.name} cannot be folded: it is no fixed linear map; it stays as it is")
        tuning = [other.name for other in self.adapters.handles.values() if other.tunes_backbone and not other.folded]
        if self.rewrites and tuning:
            raise FreqFormerError(
                f"fold {tuning[0]} before {self.name}: it trains the weights that {self.name} changes"
            )
        with torch.no_grad():
            self.into_weights()
        self.folded = True
        if self.module is None:
            self.leave()
        if self.rewrites:
            # What else is saved belongs to these weights now.
            self.backbone.look_again()
        freeze(self.model)

    def fold_as(self, described: Mapping[str, Any]) -> None:
        """Take the folded form that `describe` told of a like of this; its values come from elsewhere."""
        self.fold()

    def detach(self) -> None:
        """Take the method from the model, which is then what it was before.

        Raises:
            FreqFormerError: it was folded into the weights, or detached already.
        """
        self._require_live("detach")
        self.remove()

    def remove(self) -> None:
        """Take the method away, whatever it leaves."""
        with torch.no_grad():
            self.unbuild()
        self.folded = True
        self.leave()

    def leave(self) -> None:
        """Be no longer among the model's adapters."""
        adapters = self.adapters
        del adapters.handles[self.name]
        adapters._modules.pop(self.name, None)
        adapters.arrange()
        if adapters.handles:
            freeze(self.model)
            return
        adapters.leave(self.model)

    def _require_live(self, what: str) -> None:
        if self.folded:
            raise FreqFormerError(f"cannot {what.replace('_', ' ')}: this {self.name} was folded or detached")


def freeze(model: nn.Module) -> None:
    """Let what the handles train have gradients, and nothing else."""
    if not hasattr(model, NAME):
        return
    trained = {id(p) for handle in handles(model) if not handle.folded for p in handle.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)


def set_mode(model: nn.Module, training: bool) -> None:
    """Training mode of an adapted model: the frozen backbone stays in evaluation mode, the adapters do not."""
    model.eval()
    if training:
        for handle in handles(model):
            for module in handle.modules():
                module.train()
        for module in model.modules():
            # Linear maps that PEFT's layers hold are frozen too.
            trained = [parameter.requires_grad for parameter in module.parameters()]
            if trained and not any(trained):
                module.eval()


def handles(model: nn.Module) -> list[Handle]:
    """The methods on a model, in the order of their attachment."""
    adapters = getattr(model, NAME, None)
    return list(adapters.handles.values()) if isinstance(adapters, Adapters) else []


def backbone_of(model: nn.Module) -> Backbone:
    """The blocks of a model, which may have adapters already; raises FreqFormerError where it has none."""
    adapters = getattr(model, NAME, None)
    return adapters.backbone if isinstance(adapters, Adapters) else Backbone(model)


METHODS: dict[str, type[Handle]] = {}
"""Every method by name; a module in ``adapters/methods`` adds its own."""
ALIASES: dict[str, str] = {}
"""Upstream's names of them."""


def method(name: str, *aliases: str) -> Callable[[type[Handle]], type[Handle]]:
    """Register a method under its name, and under the names that others give it."""

    def register(handle: type[Handle]) -> type[Handle]:
        handle.name = name
        METHODS[name] = handle
        ALIASES.update(dict.fromkeys(aliases, name))
        return handle

    return register
