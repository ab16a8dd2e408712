"""Devices: those that are there, those that launchers say, and those that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attention_transfer import Recipe, UserError
from attention_transfer.training import train
from attention_transfer.training.hardware import Hardware, choose_hardware, launched_processes, this_process


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Play a machine with so many GPUs."""

    def play(number: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return play


def torchrun(monkeypatch: pytest.MonkeyPatch, *, rank: int, local: int, world: int) -> None:
    values = {"TORCHELASTIC_RUN_ID": "1", "RANK": rank, "LOCAL_WORLD_SIZE": local, "WORLD_SIZE": world}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


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


def test_slurm_says_how_many_processes_there_are(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(4)
    for name, value in {"NTASKS": 8, "NNODES": 2, "PROCID": 5, "JOB_NAME": "train", "NTASKS_PER_NODE": 4}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert launched_processes() == ("SLURM", (4, 2))
    assert this_process() == 5
    assert choose_hardware().processes == 8
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # a shell on a node: nothing has started this once for each task
    assert launched_processes() is None
    assert this_process() == 0


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
