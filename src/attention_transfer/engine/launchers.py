"""Who started this process among others, and where these meet: torchrun, SLURM's `srun`, or this command itself."""

from __future__ import annotations

import atexit
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

from attention_transfer.errors import UserError


@dataclass(frozen=True)
class Place:
    """A process among those that train together.

    Attributes:
        rank: its number among all; the first, 0, writes.
        local_rank: its number among those of its machine.
        world_size: how many there are.
        address: of the first process's machine; `None` leaves it to torchrun.
        port: where they meet.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    address: str | None = None
    port: int | None = None


def launched_processes() -> tuple[str, tuple[int, int]] | None:
    """Who started this process among others, and how many: (a machine, machines); `None` if nobody did.

    Raises:
        UserError: the machines have unequal numbers of processes, or the environment says only a part of this.
    """
    launcher = _launcher()
    if launcher == "torchrun":
        local, machines, world = _numbers("torchrun", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "WORLD_SIZE")
        if local * machines != world:
            raise UserError(
                f"torchrun started {world} processes on {machines} machines, and {local} of them on this one; "
                "give all machines the same --nproc-per-node"
            )
        return "torchrun", (local, machines)
    return ("SLURM", _slurm_tasks()) if launcher == "SLURM" else None


def this_process() -> int:
    """Rank of this process among those that train together; 0 if it is alone, and for the one that writes.

    Raises:
        UserError: the environment says only a part of what a launcher says.
    """
    return this_place().rank


def this_place() -> Place:
    """This process among those that train together; alone, and without an address, if nothing started several.

    Raises:
        UserError: the environment says only a part of what a launcher says.
    """
    launcher = _launcher()
    if launcher == "torchrun":
        rank, local_rank, world_size = _numbers("torchrun", "RANK", "LOCAL_RANK", "WORLD_SIZE")
        return Place(rank, local_rank, world_size)
    if launcher == "SLURM":
        rank, local_rank, tasks = _numbers("srun", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
        return Place(rank, local_rank, tasks, *_slurm_meeting_point())
    if _OWN not in os.environ:
        return Place()
    rank, world, port = _numbers("attention-transfer", "LOCAL_RANK", _OWN, "MASTER_PORT")
    return Place(rank, rank, world, "127.0.0.1", port)


def start_processes(number: int) -> None:
    """Start the other processes of so many on this machine, each of which runs this command again.

    This process is the first of them from here on; nothing happens if it is one of several already.
    """
    if _launcher() is not None or _OWN in os.environ:
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {_OWN: str(number), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    main = sys.modules["__main__"].__spec__  # set where a module was started by `python -m`
    command = [os.path.abspath(sys.argv[0])] if main is None else ["-m", main.name]  # noqa: PTH100
    command = [sys.executable, *command, *sys.argv[1:]]
    others = [subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(rank)}) for rank in range(1, number)]
    threading.Thread(target=_end_with, args=(others,), daemon=True).start()
    atexit.register(_end, others)


_OWN = "ATTENTION_TRANSFER_PROCESSES"
"""How many processes this command has started, in the environment of each of them."""

_SECONDS_TO_END = 10


def _end_with(others: list[subprocess.Popen[bytes]]) -> None:
    """End this process where another one failed: it may wait in the middle of a step for one that is gone."""
    while not any(other.poll() for other in others):
        time.sleep(1)
    time.sleep(_SECONDS_TO_END)  # in which it ends by itself where all were told to stop
    _end(others)
    os.kill(os.getpid(), signal.SIGKILL)


def _end(others: list[subprocess.Popen[bytes]]) -> None:
    """Give the other processes a while to end, then end them."""
    for other in others:
        try:
            other.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            other.kill()


def _launcher() -> str | None:
    """What started this process among others; `None` if nothing, or this command, did.

    Raises:
        UserError: it looks as if something had, but it does not say what.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _numbers("torchrun", *_OF_TORCHRUN)
        return "torchrun"
    if _in_slurm_step():
        return "SLURM"
    told = {name: os.environ[name] for name in _ALONE if os.environ.get(name, _ALONE[name]) != _ALONE[name]}
    if told and _OWN not in os.environ:
        raise UserError(
            f"{', '.join(f'{name} is {value!r}' for name, value in told.items())} in the environment, as for one "
            "of several processes, but neither torchrun nor srun has started this one; "
            f"start it by one of them, or give: unset {' '.join(told)}"
        )
    return None


_OF_TORCHRUN = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
_ALONE = {
    **dict.fromkeys(("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID"), "0"),
    **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"), "1"),
}
"""What launchers say to a process that is alone."""


def _numbers(launcher: str, *names: str) -> list[int]:
    """Numbers of the environment.

    Raises:
        UserError: one is missing, or none, as where the rest of a launcher's environment is left over.
    """
    wrong = [name for name in names if not os.environ.get(name, "").isdecimal() or len(os.environ[name]) > _LONGEST]
    if wrong:
        said = ", ".join(f"{name} is {os.environ[name]!r}" if name in os.environ else f"no {name}" for name in wrong)
        raise UserError(
            f"the environment is that of a process that {launcher} started, but for: {said}; "
            f"start this command by {launcher}, or in a new shell"
        )
    return [int(os.environ[name]) for name in names]


_LONGEST = 12  # digits
_OF_STEP = ("STEP_NUM_TASKS", "STEP_NUM_NODES", "STEP_ID", "JOB_ID", "PROCID", "LOCALID", "NODEID")


def _in_slurm_step() -> bool:
    """Whether `srun` started this command once for each of several tasks.

    It goes by the step and not by the job: a step may have other tasks and machines than its job, and a job's script,
    which runs once, has the job's variables too.
    """
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return False
    _numbers("srun", *(f"SLURM_{name}" for name in _OF_STEP))
    # `srun --pty bash` is a step as well, the first one, and may be given several tasks. What is run in its shell,
    # which is the first task, is run once; steps that are started there have numbers of their own.
    in_shell = "SLURM_PTY_PORT" in os.environ and os.environ["SLURM_STEP_ID"] == os.environ["SLURM_PROCID"] == "0"
    return not in_shell


def _slurm_tasks() -> tuple[int, int]:
    """How many tasks there are: (on each machine, machines).

    Raises:
        UserError: they are not equally many on each machine.
    """
    tasks, machines = _numbers("srun", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES")
    # "4(x2)", or "4(x2),3" where the last machine has fewer
    placed = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    if "," in placed or machines == 0 or tasks % machines:
        raise UserError(
            f"SLURM put {tasks} tasks on {machines} machines as {placed}; "
            "start equally many on each, by srun --ntasks-per-node"
        )
    return tasks // machines, machines


def _slurm_meeting_point() -> tuple[str, int]:
    """The machine of the first task and a port; `MASTER_ADDR` and `MASTER_PORT`, where they are set, are taken."""
    # "node[2,4]" and "node[1-2],gpu3" begin with node2 and node1.
    first = re.sub(r"\[([^],-]*)[^]]*\]", r"\1", os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")).split(",")[0]
    job, step = _numbers("srun", "SLURM_JOB_ID", "SLURM_STEP_ID")
    port = 15_000 + (job + 1009 * step) % 10_000  # trainings that share a machine have ports of their own
    if "MASTER_PORT" in os.environ:
        (port,) = _numbers("srun", "MASTER_PORT")
    return os.environ.get("MASTER_ADDR", first), port


def cores_of_this_process(processes: int) -> int:
    """Cores for each of so many processes on this machine; SLURM may have given this one cores of its own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bound = _in_slurm_step() and cores < _numbers("srun", "SLURM_CPUS_ON_NODE")[0]
    return cores if bound else cores // processes
