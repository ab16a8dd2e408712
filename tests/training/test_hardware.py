"""Devices: those that are there, those that launchers say, and those that are not there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_transfer import Recipe, UserError, train
from attention_transfer.engine.hardware import Hardware, choose_hardware
from attention_transfer.engine.launchers import Place, launched_processes, this_place, this_process
from attention_transfer.engine.loading import choose_workers


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Play a machine with so many GPUs."""

    def play(number: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return play


def torchrun(monkeypatch: pytest.MonkeyPatch, *, rank: int, local: int, world: int) -> None:
    ranks = {"LOCAL_RANK": rank % local, "GROUP_RANK": rank // local}
    sizes = {"LOCAL_WORLD_SIZE": local, "GROUP_WORLD_SIZE": -(-world // local), "WORLD_SIZE": world}
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": rank, **ranks, **sizes}.items():
        monkeypatch.setenv(name, str(value))


def slurm(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """What SLURM 22.05 puts into the environment, of what is read here."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


JOB = {"JOB_ID": 123456, "JOB_NAME": "train", "NTASKS": 8, "NNODES": 2, "NTASKS_PER_NODE": 4, "NODELIST": "node[1-2]"}
STEP = {
    **{"STEP_ID": 0, "STEP_NUM_TASKS": 8, "STEP_NUM_NODES": 2, "STEP_TASKS_PER_NODE": "4(x2)"},
    **{"STEP_NODELIST": "node[1-2]", "PROCID": 5, "LOCALID": 1, "NODEID": 1},
}


def test_without_a_gpu_it_is_one_process_on_the_cpu(gpus: Any) -> None:
    gpus(0)
    assert str(choose_hardware()) == "cpu (no GPU is there)"
    assert choose_hardware(devices=3).processes == 3


def test_one_gpu_is_taken_unless_more_are_asked_for(gpus: Any) -> None:
    gpus(4)
    assert str(choose_hardware()) == "cuda (cuda is there, and 3 more, which --devices auto takes too)"
    assert choose_hardware(devices="auto").devices == 4
    assert choose_hardware(devices=2).devices == 2
    assert choose_hardware("cpu") == Hardware("cpu", 1, 1, "as asked for")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"device": "cuda"}, "device is cuda, but this machine has none"),
        ({"device": "mps"}, "device is mps, but this machine has none"),
        ({"device": "gpu"}, "device is 'gpu'; did you mean 'cpu'"),
        ({"devices": 0}, "devices is 0; give a number of at least 1"),
        ({"nodes": 2}, "nodes is 2, but nothing started this command on other machines"),
    ],
)
def test_what_is_not_there_is_refused(asked: dict[str, Any], message: str, gpus: Any) -> None:
    gpus(0)
    with pytest.raises(UserError, match=message):
        choose_hardware(**asked)


def test_more_gpus_than_there_are_are_refused(gpus: Any) -> None:
    gpus(2)
    with pytest.raises(UserError, match="devices is 8, but this machine has 2 of cuda"):
        choose_hardware(devices=8)


def test_torchrun_says_how_many_processes_there_are(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(8)
    torchrun(monkeypatch, rank=11, local=8, world=16)
    assert launched_processes() == ("torchrun", (8, 2))
    assert this_process() == 11
    hardware = choose_hardware()
    assert (hardware.devices, hardware.nodes, hardware.processes) == (8, 2, 16)
    assert str(hardware) == "8 x cuda on each of 2 machines (cuda is there; processes by torchrun)"
    with pytest.raises(UserError, match="devices is 4, but torchrun started 8"):
        choose_hardware(devices=4)
    gpus(4)
    with pytest.raises(UserError, match="torchrun started 8 processes a machine, but this one has 4"):
        choose_hardware()


@pytest.mark.parametrize("local", [1, 2])  # as the one machine sees it, and as the other does
def test_unequal_numbers_of_processes_are_refused(local: int, gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0)
    torchrun(monkeypatch, rank=0, local=local, world=3)
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun started 3 processes on 2 machines"):
        choose_hardware()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    slurm(monkeypatch, **JOB, **{**STEP, "STEP_NUM_TASKS": 7, "STEP_TASKS_PER_NODE": "4,3"})
    with pytest.raises(UserError, match="SLURM put 7 tasks on 2 machines as 4,3"):
        choose_hardware()


def test_slurm_says_how_many_processes_there_are(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(4)
    slurm(monkeypatch, **JOB, **STEP)
    assert launched_processes() == ("SLURM", (4, 2))
    assert this_process() == 5
    assert str(choose_hardware()) == "4 x cuda on each of 2 machines (cuda is there; processes by SLURM)"


@pytest.mark.parametrize(
    "where",
    [
        {**JOB, "PROCID": 0},  # a job's script
        {**JOB, "JOB_NAME": "interactive"},  # the shell of salloc
        {**JOB, **STEP, "STEP_NUM_TASKS": 1, "STEP_NUM_NODES": 1, "STEP_TASKS_PER_NODE": "1", "PROCID": 0},
        {**JOB, **STEP, "JOB_NAME": "bash", "PROCID": 0, "PTY_PORT": 36509},  # srun --pty bash
    ],
)
def test_what_slurm_runs_once_is_alone(where: dict[str, Any], gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0)
    slurm(monkeypatch, **where)
    assert launched_processes() is None
    assert this_process() == 0
    assert this_place() == Place()
    assert choose_hardware(devices=2).processes == 2


@pytest.mark.parametrize(
    "where",
    [
        {"JOB_NAME": "interactive"},  # srun in a shell of salloc
        {"JOB_NAME": "bash", "PTY_PORT": 36509, "STEP_ID": 2},  # srun in a shell of srun
        {"NTASKS": 16, "NNODES": 4, "NODELIST": "node[1-4]"},  # a part of a job
    ],
)
def test_tasks_of_a_step_belong_together(where: dict[str, Any], gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0)
    slurm(monkeypatch, **{**JOB, **STEP, "STEP_NODELIST": "node[2,4]", **where})
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")  # srun --ntasks sets none
    assert launched_processes() == ("SLURM", (4, 2))
    place = this_place()
    assert (place.world_size, place.rank, place.local_rank, place.address) == (8, 5, 1, "node2")


def test_trainings_at_once_in_a_job_have_ports_of_their_own(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0)
    ports = set()
    for job, step in ((123456, 0), (123456, 1), (123457, 0)):
        slurm(monkeypatch, **{**JOB, **STEP, "JOB_ID": job, "STEP_ID": step})
        ports.add(this_place().port)
    assert len(ports) == 3
    monkeypatch.setenv("MASTER_PORT", "4711")
    assert this_place().port == 4711


def test_torchrun_in_a_job_is_torchrun(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0)
    slurm(monkeypatch, **JOB, **{**STEP, "STEP_NUM_TASKS": 2, "STEP_TASKS_PER_NODE": "1(x2)", "PROCID": 1})
    torchrun(monkeypatch, rank=11, local=8, world=16)
    hardware = choose_hardware()
    assert (hardware.devices, hardware.nodes, this_process()) == (8, 2, 11)
    assert this_place() == Place(rank=11, local_rank=3, world_size=16)


def test_a_task_with_cores_of_its_own_does_not_share_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(9)))
    slurm(monkeypatch, **JOB, **STEP, CPUS_ON_NODE=36)  # 4 tasks of 9 cores
    photos: Any = [None] * 4
    assert choose_workers(photos, None, Hardware("cuda", 4, 2))[0] == 8
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "9")  # 4 tasks on 9 cores
    assert choose_workers(photos, None, Hardware("cuda", 4, 2))[0] == 1


LEFT_OVER = [
    ({"LOCAL_RANK": "1"}, "LOCAL_RANK is '1' in the environment"),
    ({"LOCAL_RANK": ""}, "LOCAL_RANK is '' in the environment"),
    ({"LOCAL_RANK": "x", "WORLD_SIZE": "2"}, "LOCAL_RANK is 'x', WORLD_SIZE is '2' in the environment"),
    ({"SLURM_PROCID": "3"}, "SLURM_PROCID is '3' in the environment"),
    (
        {"TORCHELASTIC_RUN_ID": "1", "RANK": "0"},
        "that torchrun started, but for: no LOCAL_RANK, no GROUP_RANK",
    ),
    ({"SLURM_STEP_NUM_TASKS": "2"}, "a process that srun started, but for: no SLURM_STEP_NUM_NODES"),
    ({"SLURM_STEP_NUM_TASKS": "many"}, "a process that srun started, but for: SLURM_STEP_NUM_TASKS is 'many'"),
]


@pytest.mark.parametrize(("environ", "sentence"), LEFT_OVER, ids=[" ".join(environ) for environ, _ in LEFT_OVER])
def test_a_part_of_a_launchers_environment_is_refused(
    environ: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slurm(monkeypatch)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=re.escape(sentence)):
        this_process()
    with pytest.raises(UserError, match=re.escape(sentence)):
        train("scratch", shots=1, epochs=1, out=str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_what_launchers_say_to_a_process_that_is_alone_is_no_matter(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0)
    slurm(monkeypatch, PROCID=0)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "x"}.items():
        monkeypatch.setenv(name, value)
    assert this_process() == 0
    assert this_place() == Place()
    assert launched_processes() is None


@pytest.mark.parametrize(
    ("nodes", "first"), [("node7", "node7"), ("n[01-12],m3", "n01"), ("a-b[2,4],c", "a-b2"), ("gpu[5],x1", "gpu5")]
)
def test_the_first_machine_of_a_list_is_where_a_step_meets(
    nodes: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm(monkeypatch, **{**JOB, **STEP, "STEP_NODELIST": nodes})
    assert this_place().address == first


def test_thousands_of_processes_are_refused(gpus: Any) -> None:
    gpus(0)
    with pytest.raises(UserError, match="devices is 5000, but this machine has"):
        choose_hardware(devices=5_000)
    (problem,) = Hardware("cpu", 1).problems(Recipe(workers=5_000))
    assert problem.startswith("recipe.workers is 5000, but this machine has")


def test_what_the_devices_can_not_do_is_listed() -> None:
    recipe = Recipe(batch_size=20, accumulate=2, precision="fp16")
    first, second = Hardware("cpu", 3).problems(recipe)
    assert "fp16 needs a GPU" in first
    assert "batch_size 20 can't be cut into equal shares for 3 devices x 2 micro-batches" in second
    assert Hardware("cuda", 5).problems(recipe) == []


def test_a_verb_lists_missing_devices_and_packages_before_it_writes(tmp_path: Path, gpus: Any) -> None:
    gpus(0)
    with pytest.raises(UserError) as caught:
        train("scratch", device="cuda", loggers=["wandb", "tensorbord"], out=str(tmp_path / "run"))  # type: ignore[list-item]
    assert "device is cuda" in str(caught.value)
    assert "there is no logger 'tensorbord'; did you mean 'tensorboard'?" in str(caught.value)
    assert not (tmp_path / "run").exists()
