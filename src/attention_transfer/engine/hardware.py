"""On which devices a training runs, and by how many processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import get_args

import torch

from attention_transfer.config.choices import Device, Devices, Strategy
from attention_transfer.config.recipe import Recipe
from attention_transfer.engine.launchers import launched_processes
from attention_transfer.errors import UserError, nearest, raise_all


@dataclass(frozen=True)
class Hardware:
    """Where a training runs.

    Attributes:
        device: "cpu", "cuda" or "mps".
        devices: processes on each machine, one a device.
        nodes: machines.
        reason: why, in words.
        strategy: of several devices: "ddp", each has the whole student; "fsdp", each has a share of it.
    """

    device: str = "cpu"
    devices: int = 1
    nodes: int = 1
    reason: str = "as asked for"
    strategy: Strategy = "ddp"

    @property
    def processes(self) -> int:
        """On all machines together."""
        return self.devices * self.nodes

    @property
    def sharded(self) -> bool:
        """Whether each device holds a share of the weights only."""
        return self.strategy == "fsdp"

    def __str__(self) -> str:
        machines = f" on each of {self.nodes} machines" if self.nodes > 1 else ""
        count = f"{self.devices} x " if self.processes > 1 else ""
        shares = ", weights in shares (FSDP)" if self.sharded else ""
        return f"{count}{self.device}{machines}{shares} ({self.reason})"

    def problems(self, recipe: Recipe) -> list[str]:
        """What a recipe asks for and these devices can't do, a sentence each."""
        found = []
        if recipe.precision == "fp16" and self.device == "cpu":
            found.append("recipe.precision fp16 needs a GPU, and this runs on the CPU; choose bf16 or fp32")
        if recipe.workers is not None and recipe.workers * self.devices > (most := 16 * (os.cpu_count() or 1)):
            each = f" for each of {self.devices} devices" if self.devices > 1 else ""
            found.append(
                f"recipe.workers is {recipe.workers}{each}, but this machine has {os.cpu_count()} cores; "
                f"choose at most {most // self.devices}, or leave it out"
            )
        known = recipe.batch_size != "auto"
        if self.processes > 1 and known and recipe.batch_size % (self.processes * recipe.accumulate):
            found.append(
                f"recipe.batch_size {recipe.batch_size} can't be cut into equal shares for {self.processes} devices "
                f"x {recipe.accumulate} micro-batches; choose a batch_size that they divide"
            )
        if self.sharded and self.processes == 1:
            found.append(
                "strategy is fsdp, which shares a network out to several devices, but this runs on one; "
                "start more (--devices, torchrun or srun), or leave strategy out"
            )
        if self.sharded and recipe.precision == "fp16":
            found.append("strategy fsdp does not scale the loss, as recipe.precision fp16 must; choose bf16 or fp32")
        if self.sharded and recipe.compile:
            found.append("strategy fsdp can't be compiled as a whole; leave recipe.compile or strategy out")
        return found


def choose_hardware(
    device: Device = "auto", devices: Devices = None, nodes: int | None = None, strategy: Strategy = "ddp"
) -> Hardware:
    """The devices to train on.

    `torchrun` and SLURM say how many processes there are; otherwise there is one, unless more are asked for: these are
    then started by running the whole command again, which a verb that trains several networks could not bear.

    Args:
        device: "auto" takes GPUs where there are any.
        devices: of each machine; "auto" is every GPU, `None` what the launcher says, or one.
        nodes: machines; default what the launcher says, or 1.
        strategy: "ddp", the whole student on each device; "fsdp", a share of it.

    Raises:
        UserError: a device is not there, or the launcher started another number of processes.
    """
    raise_all(_problems(device, devices, nodes, strategy))
    kind, reason = _kind(device)
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind)
    launched = launched_processes()
    if launched is None:
        count = (there or 1) if devices == "auto" else devices or 1
        if devices is None and there is not None and there > 1:
            reason += f", and {there - 1} more, which --devices auto takes too"
        most = there or max(8, os.cpu_count() or 1)  # a few more than there are cores do no harm
        if count > most:
            have = f"{there} of {kind}" if there else f"{os.cpu_count()} cores, which {most} processes can share"
            raise UserError(f"devices is {count}, but this machine has {have}; ask for at most that")
        if nodes is not None and nodes > 1:
            raise UserError(
                f"nodes is {nodes}, but nothing started this command on other machines; "
                "start it on each by torchrun or srun (see docs/cluster.md)"
            )
        return Hardware(kind, count, 1, reason, strategy)
    launcher, (own, machines) = launched
    for name, asked, given in (("devices", devices, own), ("nodes", nodes, machines)):
        if asked not in ("auto", None, given):
            raise UserError(f"{name} is {asked}, but {launcher} started {given}; leave {name} out, or start as many")
    if there is not None and own > there:
        raise UserError(f"{launcher} started {own} processes a machine, but this one has {there} of {kind}")
    return Hardware(kind, own, machines, f"{reason}; processes by {launcher}", strategy)


def _problems(device: str, devices: Devices, nodes: int | None, strategy: str) -> list[str]:
    found = []
    if strategy not in get_args(Strategy):
        found.append(f"strategy is {strategy!r}; {nearest(strategy, get_args(Strategy))}")
    if device not in get_args(Device):
        found.append(f"device is {device!r}; {nearest(device, get_args(Device))}")
    if isinstance(devices, int) and devices < 1:
        found.append(f"devices is {devices}; give a number of at least 1, or auto")
    if nodes is not None and nodes < 1:
        found.append(f"nodes is {nodes}; give a number of at least 1")
    return found


def _kind(device: Device) -> tuple[str, str]:
    """The kind of device, and the reason."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        kind = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
        return kind, "no GPU is there" if kind == "cpu" else f"{kind} is there"
    if not there[device]:
        raise UserError(f"device is {device}, but this machine has none that PyTorch can use; choose auto or cpu")
    return device, "as asked for"
