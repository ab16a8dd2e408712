"""Which images are read when, by whom, and what their augmentation depends on."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from attention_transfer.data import ArrayImages, FileImages, ImageSet
from attention_transfer.engine.hardware import Hardware
from attention_transfer.engine.loading import choose_workers, evaluation_loader, training_loader
from attention_transfer.engine.samplers import (
    SeededSampler,
    Share,
    ShareOfBatches,
    Unrepeated,
    class_weights,
    share_of_batch,
)
from attention_transfer.training import ResolvedRecipe, read_metrics
from tests.warm import Python


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Images that are augmented by noise from all three generators."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        drawn = torch.rand(()) + float(np.random.rand())
        return torch.stack([torch.tensor(float(index)), drawn]), torch.tensor(index)


def numbered(number: int) -> Any:
    return TensorDataset(torch.arange(number), torch.arange(number) % 3)


@pytest.mark.parametrize("processes", [2, 3])
def test_shares_of_all_processes_are_the_batches_of_one(processes: int) -> None:
    data = numbered(22)
    order = SeededSampler(data, seed=3)
    order.set_epoch(2)
    whole = list(ShareOfBatches(order, 7))
    shares = [list(ShareOfBatches(order, 7, process=rank, processes=processes)) for rank in range(processes)]
    for number, batch in enumerate(whole):
        told = [
            share_of_batch(number, images=22, batch_size=7, process=rank, processes=processes)
            for rank in range(processes)
        ]
        counted = [image for rank in range(processes) for image in shares[rank][number][: told[rank].own]]
        assert sorted(counted) == sorted(batch)
        assert {share.whole for share in told} == {len(batch)}
        assert all(len(shares[rank][number]) >= 1 for rank in range(processes))  # all take part in the step
    assert share_of_batch(3, images=22, batch_size=7, process=1, processes=2) == Share(0, 1)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int, process: int = 0) -> list[int]:
        sampler = SeededSampler(numbered(50), seed=seed, process=process)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 4) == order(1, 4, process=1)
    assert order(1, 4) != order(1, 5)
    assert order(1, 4) != order(2, 4)
    assert sorted(order(1, 4)) == list(range(50))


def test_processes_draw_other_dropout() -> None:
    drawn = []
    for process in (0, 1):
        SeededSampler(numbered(4), seed=1, process=process).set_epoch(0)
        drawn.append(float(torch.rand(())))
    assert drawn[0] != drawn[1]


def test_balanced_draws_take_each_class_as_often() -> None:
    data = TensorDataset(torch.zeros(1000), torch.tensor([0] * 900 + [1] * 90 + [2] * 10))
    weights = class_weights(data)
    assert [float(weights[i]) for i in (0, 900, 990)] == pytest.approx([1 / 2700, 1 / 270, 1 / 30])
    counts: Counter[int] = Counter()
    for epoch in range(20):
        sampler = SeededSampler(data, seed=0, weights=weights)
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert drawn == list(sampler)
        assert len(drawn) == 1000
        counts.update(data.tensors[1][drawn].tolist())
    for label in range(3):
        assert counts[label] / 20_000 == pytest.approx(1 / 3, abs=0.02)  # six standard deviations


def test_evaluation_reads_each_image_once_over_all_processes() -> None:
    for number, processes in ((11, 2), (7, 3), (4, 4)):
        read = [list(Unrepeated(numbered(number), process=rank, processes=processes)) for rank in range(processes)]
        assert sorted(image for own in read for image in own) == list(range(number))
        assert [len(Unrepeated(numbered(number), process=rank, processes=processes)) for rank in range(processes)] == [
            len(own) for own in read
        ]
    hardware = Hardware("cpu", 2)
    seen = [batch[0] for rank in (0, 1) for batch in evaluation_loader(numbered(11), 4, rank, hardware, 0)]
    assert sorted(torch.cat(seen).tolist()) == list(range(11))


def epoch_of(workers: int, hardware: Hardware, epoch: int, *, process: int = 0) -> dict[float, float]:
    """The noise of each image."""
    sampler = SeededSampler(Noisy(), seed=5, process=process)
    loader: DataLoader[Any] = training_loader(Noisy(), sampler, ResolvedRecipe(batch_size=4), hardware, workers)
    for number in range(epoch + 1):
        sampler.set_epoch(number)
        rows = [row for images, _ in loader for row in images.tolist()]
    return dict(rows)


def test_an_image_is_augmented_alike_by_any_worker_and_device() -> None:
    one, two = (epoch_of(workers, Hardware(), 1) for workers in (1, 2))
    assert one == two
    assert len(set(one.values())) == 10
    assert epoch_of(2, Hardware(), 0) != one
    shared = epoch_of(0, Hardware("cpu", 2), 1) | epoch_of(0, Hardware("cpu", 2), 1, process=1)
    assert shared == one


def test_augmentation_leaves_what_the_network_draws_alone() -> None:
    sampler = SeededSampler(Noisy(), seed=5)
    loader = training_loader(Noisy(), sampler, ResolvedRecipe(batch_size=4), Hardware("cpu", 2), 0)
    sampler.set_epoch(0)

    def states() -> Any:
        legacy: Any = np.random.get_state()
        return torch.get_rng_state().tolist(), legacy[1].tolist()

    before = states()
    list(loader)
    assert states() == before


# As where Python starts processes by a fork server, its default on Linux from 3.14 on, which outlives the trainer.
KILLED = """
import multiprocessing, os, signal, torch
from torch.utils.data import TensorDataset
from attention_transfer.config.recipe import ResolvedRecipe
from attention_transfer.engine.hardware import Hardware
from attention_transfer.engine.loading import training_loader
from attention_transfer.engine.samplers import SeededSampler

multiprocessing.set_start_method("forkserver", force=True)
images = TensorDataset(torch.arange(8), torch.arange(8))
batches = iter(training_loader(images, SeededSampler(images, seed=0), ResolvedRecipe(batch_size=4), Hardware(), 1))
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_processes_that_load_images_end_with_a_trainer_that_is_killed(python: Python) -> None:
    done = python("-c", KILLED)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (loader,) = map(int, done.stdout.split())
    until = time.monotonic() + 20
    while running(loader) and time.monotonic() < until:
        time.sleep(0.1)
    assert not running(loader)


def running(process: int) -> bool:
    """Whether it is there, and no zombie that nobody has asked for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_are_chosen_by_the_images_and_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def images(inner: Any) -> ImageSet:
        return ImageSet(inner, np.zeros(1, dtype=np.int64), lambda image: torch.zeros(1))

    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64), raising=False)
    small = images(ArrayImages(np.zeros((1, 32, 32), dtype=np.uint8)))
    large = images(ArrayImages(np.zeros((1, 256, 256, 3), dtype=np.uint8)))
    files = images(FileImages((Path("a.png"),)))
    assert choose_workers(small, None, Hardware())[0] == 0
    assert choose_workers(numbered(3), None, Hardware()) == (0, "tensors in memory")
    assert [choose_workers(chosen, None, Hardware())[0] for chosen in (large, files)] == [8, 8]
    assert choose_workers(files, None, Hardware("cuda", 16))[0] == 3
    assert choose_workers(small, 5, Hardware()) == (5, "as asked for")


def test_metrics_say_speed_waiting_and_everything_goes_to_tensorboard(tiny: Any, tmp_path: Path) -> None:
    for epochs in (2, 3):  # the second run goes on
        tiny.fit(tiny.objective("distill"), tmp_path, replace(tiny.recipe, epochs=epochs), loggers=["tensorboard"])
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert all(0 <= row["time/data_wait"] <= 1 and row["time/images_per_second"] > 0 for row in rows)
    events: Any = import_module("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(
        str(tmp_path / "tensorboard")
    )
    events.Reload()
    for name in ("train/loss", "train/distill", "train/grad_norm", "lr", "validation/accuracy", "time/data_wait"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [(row["step"], pytest.approx(row[name])) for row in rows]


def test_what_prepares_images_varies_them_in_training_alone(tiny: Any, tmp_path: Path) -> None:
    objective, modes = tiny.objective("scratch"), []

    class Preparation(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            modes.append((self.training, objective.training))
            return pixels

    tiny.fit(objective, tmp_path, prepare=Preparation())
    assert {prepares for prepares, _ in modes} == {True, False}
    assert all(prepares == trains for prepares, trains in modes)
