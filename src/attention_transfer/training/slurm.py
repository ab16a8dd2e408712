"""The tasks of one `srun`, as processes that train together."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from attention_transfer.errors import UserError


def numbers(launcher: str, *names: str) -> list[int]:
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


class SlurmStep(ClusterEnvironment):
    """Where the tasks of a step are, by what `srun` says of the step.

    Lightning's own goes by the job. A step may have other tasks and machines than its job, and a job's script, which
    runs once, has the job's variables too; and it takes no job that is named "interactive", as `salloc` names them.
    """

    @staticmethod
    def detect() -> bool:
        """Whether `srun` started this command once for each of several tasks."""
        if os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
            return False
        numbers("srun", *(f"SLURM_{name}" for name in _OF_STEP))
        # `srun --pty bash` is a step as well, the first one, and may be given several tasks. What is run in its shell,
        # which is the first task, is run once; steps that are started there have numbers of their own.
        in_shell = "SLURM_PTY_PORT" in os.environ and os.environ["SLURM_STEP_ID"] == os.environ["SLURM_PROCID"] == "0"
        return not in_shell

    @staticmethod
    def tasks() -> tuple[int, int]:
        """How many tasks there are: (on each machine, machines).

        Raises:
            UserError: they are not equally many on each machine.
        """
        tasks, machines = numbers("srun", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES")
        placed = os.environ.get(
            "SLURM_STEP_TASKS_PER_NODE", ""
        )  # "4(x2)", or "4(x2),3" where the last machine has fewer
        if "," in placed or machines == 0 or tasks % machines:
            raise UserError(
                f"SLURM put {tasks} tasks on {machines} machines as {placed}; "
                "start equally many on each, by srun --ntasks-per-node"
            )
        return tasks // machines, machines

    @staticmethod
    def bound() -> bool:
        """Whether each task has cores of its own, and not all of them those of the machine."""
        return SlurmStep.detect() and len(os.sched_getaffinity(0)) < numbers("srun", "SLURM_CPUS_ON_NODE")[0]

    @property
    def creates_processes_externally(self) -> bool:
        """`srun` does."""
        return True

    @property
    def main_address(self) -> str:
        """Name of the machine with the first task; `MASTER_ADDR`, where it is given, is another name for it."""
        listed = os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")
        return os.environ.get("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(listed))

    @property
    def main_port(self) -> int:
        """`MASTER_PORT`, or one that differs between the jobs and steps that may share a machine."""
        number = int(os.environ["SLURM_JOB_ID"]) + 1009 * int(os.environ["SLURM_STEP_ID"])
        return numbers("srun", "MASTER_PORT")[0] if "MASTER_PORT" in os.environ else 15_000 + number % 10_000

    def world_size(self) -> int:
        """Tasks on all machines."""
        return int(os.environ["SLURM_STEP_NUM_TASKS"])

    def global_rank(self) -> int:
        """Of this task among all."""
        return int(os.environ["SLURM_PROCID"])

    def local_rank(self) -> int:
        """Of this task among those of its machine."""
        return int(os.environ["SLURM_LOCALID"])

    def node_rank(self) -> int:
        """Of this machine among those of the step."""
        return int(os.environ["SLURM_NODEID"])

    def set_world_size(self, size: int) -> None:
        """SLURM has set it."""

    def set_global_rank(self, rank: int) -> None:
        """SLURM has set it."""
