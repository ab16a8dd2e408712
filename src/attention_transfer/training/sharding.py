"""Weights, gradients and optimiser state cut into shares, one a device (FSDP2), for networks that one can't hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from attention_transfer.vit import anatomy


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, whose checkpoints are the files of a training that is not sharded.

    Tensors are put together when a checkpoint is written, and cut when it is read, so a run can go on with other
    devices, and by another strategy. Lightning's own way leaves out what callbacks add to a checkpoint.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def mesh(self) -> DeviceMesh:
        """The devices that have shares."""
        return self.device_mesh["data_parallel"]

    @property
    def lightning_restore_optimizer(self) -> bool:
        """As for all other state."""
        return True

    def setup_environment(self) -> None:
        """Let the processes find each other."""
        super().setup_environment()
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = None  # a module that holds it can't be copied, as averaging wants to

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights, in shares."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimiser's state, in shares."""
        return dict(optimizer.state_dict())

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Put the shares together, all processes at once; the first writes."""
        checkpoint = tree_map_only(DTensor, self._whole, checkpoint)
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, and cut it."""
        checkpoint = self.checkpoint_io.load_checkpoint(Path(checkpoint_path), weights_only=weights_only)
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        for name in {"state_dict", "current_model_state"} & checkpoint.keys():
            checkpoint[name] = in_shares(checkpoint[name], own)
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for place, values in state["state"].items():
                state["state"][place] = {name: as_placed(v, parameters[place]) for name, v in values.items()}
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take the weights, which are cut."""
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the optimisers' state, which is cut."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def _whole(self, shares: DTensor) -> Tensor | None:
        whole: Tensor = shares.full_tensor().detach()
        return whole.cpu() if self.is_global_zero else None


def shard(objective: nn.Module, mesh: DeviceMesh) -> None:
    """Cut an objective's parameters into shares, block by block: a block is whole only while it is computed.

    What an objective does not count among its parameters, as the teacher, stays whole on each device.
    """
    vit = cast(nn.Module, objective.vit)
    for block in anatomy(vit).blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # What is left: embeddings, norm and head, and what the objective has beside the network.
    fully_shard(objective, mesh=mesh, reshard_after_forward=True)


def in_shares(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, by name, cut as others of these names are."""
    return {name: as_placed(value, like[name]) if name in like else value for name, value in state.items()}


def as_placed(whole: Tensor, like: Tensor) -> Tensor:
    """This process's share of a tensor that all processes have, cut by rows as another is; counts stay whole."""
    if not isinstance(like, DTensor) or whole.ndim == 0:
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def in_one_piece(value: Tensor) -> Tensor:
    """A value, e.g. a norm, of which each process has a share."""
    return value.full_tensor() if isinstance(value, DTensor) else value
