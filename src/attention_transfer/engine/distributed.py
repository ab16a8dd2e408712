"""Several processes that train one network: where they meet, and how its weights are replicated or sharded."""

from __future__ import annotations

import atexit
import os

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from attention_transfer.engine.hardware import Hardware
from attention_transfer.engine.launchers import Place, cores_of_this_process, start_processes, this_place
from attention_transfer.objectives import Objective
from attention_transfer.vit import anatomy


def join(hardware: Hardware) -> Place:
    """Let the processes of a training meet, and wait for all; starts those that nothing else has started."""
    if hardware.processes == 1:
        return Place()
    start_processes(hardware.processes)
    place = this_place()
    if not distributed.is_initialized():
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, cores_of_this_process(hardware.devices)))
        if place.address is not None:  # torchrun has set both
            os.environ |= {"MASTER_ADDR": place.address, "MASTER_PORT": str(place.port)}
        backend = "nccl" if hardware.device == "cuda" else "gloo"
        distributed.init_process_group(backend, rank=place.rank, world_size=place.world_size)
        atexit.register(distributed.destroy_process_group)
    if hardware.device == "cuda":
        torch.cuda.set_device(place.local_rank)
    distributed.barrier()
    return place


def replicated(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """A model of which each process has a copy, whose gradients are averaged in the backward pass."""
    # Copying leaves some students' query and key projections without gradients.
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, devices, find_unused_parameters=True)


def shard(objective: Objective, hardware: Hardware) -> None:
    """Shard an objective's parameters, block by block: a block is whole only while it is computed.

    What an objective does not count among its parameters, as the teacher, stays whole on each device.
    """
    mesh = init_device_mesh(hardware.device, (hardware.processes,))
    for block in anatomy(objective.vit).blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # What is left: embeddings, norm and head, and what the objective has beside the network.
    fully_shard(objective, mesh=mesh, reshard_after_forward=True)


def as_placed(whole: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a tensor that all processes have, cut as another one is; counts stay whole."""
    if not isinstance(like, DTensor) or whole.ndim == 0:
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole(value: Tensor) -> Tensor:
    """A tensor of which each process may have a shard; all must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def total(values: Tensor, processes: int) -> Tensor:
    """The sum over processes, in place."""
    if processes > 1:
        distributed.all_reduce(values)
    return values


def gathered(values: list[str], processes: int) -> list[str]:
    """What all processes say, each once, in the order of processes."""
    if processes == 1:
        return values
    everywhere: list[list[str]] = [[]] * processes
    distributed.all_gather_object(everywhere, values)
    return list(dict.fromkeys(value for own in everywhere for value in own))
