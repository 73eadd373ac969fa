"""How the processes of a run share its work: copies of the model (DDP), or shards of it (FSDP2)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ..errors import FreqFormerError
from ..tasks import RunConfig
from .processes import Processes, World, rank, world_size

STRATEGIES = ("auto", "ddp", "fsdp")


def require_strategy(config: Processes) -> None:
    """Refuse a strategy that does not exist, or that a run's other settings do not go with.

    Raises:
        FreqFormerError: naming the flag.
    """
    if config.strategy not in STRATEGIES:
        raise FreqFormerError(f"there is no strategy {config.strategy!r}: choose one of {', '.join(STRATEGIES)}")
    if config.strategy != "fsdp":
        return
    if isinstance(config, RunConfig) and config.model_ema:
        raise FreqFormerError("--strategy fsdp keeps no moving average: leave out --model-ema, or take --strategy ddp")
    if getattr(config, "precision", "").startswith("16"):
        raise FreqFormerError("--strategy fsdp does not scale float16's gradients: take --precision bf16-mixed")


def trainer_arguments(accelerator: str, strategy: str) -> dict[str, Any]:
    """What a Trainer has to know of the processes, which have been joined; ``plugins`` may be added to."""
    world = World(accelerator)
    sharing: Strategy | str = "auto"
    if strategy == "fsdp":
        sharing = Sharded(data_parallel_size=world_size(), tensor_parallel_size=1, save_distributed_checkpoint=False)
    elif world_size() > 1:
        sharing = DDPStrategy(gradient_as_bucket_view=True)
    return {
        "accelerator": accelerator,
        "devices": world.place.local_size,
        "num_nodes": world.place.nodes,
        "strategy": sharing,
        "plugins": [world],
    }


class Sharded(ModelParallelStrategy):
    """FSDP2 whose checkpoints are those of a single process, to save and to load."""

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimiser's whole state, in process 0; empty tensors elsewhere."""
        saved = optimizer.state_dict()
        state = {key: {name: _whole(value) for name, value in row.items()} for key, row in saved["state"].items()}
        return {**saved, "state": state}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint and give each process its shards of it."""
        checkpoint = self.checkpoint_io.load_checkpoint(Path(checkpoint_path), weights_only=weights_only)
        assert self.lightning_module is not None
        load_whole(self.lightning_module, checkpoint["state_dict"])
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", ()), strict=False):
            _load_optimizer(optimizer, state)
        return checkpoint


def load_whole(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict into a model, which may be sharded.

    Args:
        model: any model.
        state: whole tensors by parameter name, in each process.
    """
    set_model_state_dict(model, dict(state), options=StateDictOptions(full_state_dict=True, strict=True))


def _whole(value: Any) -> Any:
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    # All have to take part in gathering it; only process 0 writes it.
    return whole.cpu() if rank() == 0 else torch.empty(0)


def _load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    # Saved parameters are numbered in the order of their groups, as everywhere in torch.optim.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    state = {
        number: {name: _sharded(value, parameter) for name, value in saved["state"].get(number, {}).items()}
        for number, parameter in zip(numbers, parameters, strict=True)
    }
    optimizer.load_state_dict({**saved, "state": {number: row for number, row in state.items() if row}})


def _sharded(value: Any, like: Tensor) -> Any:
    """A tensor of a parameter's shape in the shards of that parameter; anything else as it is."""
    if not (isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
