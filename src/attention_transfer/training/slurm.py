"""The tasks of one `srun`, as processes that train together."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from attention_transfer.errors import UserError


class SlurmStep(ClusterEnvironment):
    """Where the tasks of a step are, by what `srun` says of the step.

    Lightning's own goes by the job. A step may have other tasks and machines than its job, and a job's script, which
    runs once, has the job's variables too; and it takes no job that is named "interactive", as `salloc` names them.
    """

    @staticmethod
    def detect() -> bool:
        """Whether `srun` started this command once for each of several tasks."""
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
            return False
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
        tasks, machines = int(os.environ["SLURM_STEP_NUM_TASKS"]), int(os.environ["SLURM_STEP_NUM_NODES"])
        placed = os.environ["SLURM_STEP_TASKS_PER_NODE"]  # "4(x2)", or "4(x2),3" where the last machine has fewer
        if "," in placed:
            raise UserError(
                f"SLURM put {tasks} tasks on {machines} machines as {placed}; "
                "start equally many on each, by srun --ntasks-per-node"
            )
        return tasks // machines, machines

    @staticmethod
    def bound() -> bool:
        """Whether each task has cores of its own, and not all of them those of the machine."""
        return SlurmStep.detect() and len(os.sched_getaffinity(0)) < int(os.environ["SLURM_CPUS_ON_NODE"])

    @property
    def creates_processes_externally(self) -> bool:
        """`srun` does."""
        return True

    @property
    def main_address(self) -> str:
        """Name of the machine with the first task; `MASTER_ADDR`, where it is given, is another name for it."""
        first = SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"])
        return os.environ.get("MASTER_ADDR", first)

    @property
    def main_port(self) -> int:
        """`MASTER_PORT`, or one that differs between the jobs and steps that may share a machine."""
        number = int(os.environ["SLURM_JOB_ID"]) + 1009 * int(os.environ["SLURM_STEP_ID"])
        return int(os.environ.get("MASTER_PORT", 15_000 + number % 10_000))

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
