"""Tiny trainings by `fit`, for the tests of the engine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from attention_transfer import AttentionTransfer, Copy, Distill, Guide
from attention_transfer.training import (
    Objective,
    ResolvedRecipe,
    RunFolder,
    Supervised,
    Training,
    TrainingResult,
    fit,
    read_metrics,
)
from attention_transfer.transfer import Rule
from tests.warm import Python


@dataclass
class TinyRuns:
    """Trainings of a tiny ViT on random images of 5 classes, 3 steps an epoch: two of 8 images and one of 4."""

    build: Callable[..., Any]
    methods: dict[str, Sequence[Rule]]
    recipe: ResolvedRecipe

    def images(self, number: int, *, seed: int = 0) -> TensorDataset:
        """Random grey images; those of a class are alike."""
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(number) % 5
        signs = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(99))
        return TensorDataset(signs[labels] + torch.randn(number, 1, 8, 8, generator=generator), labels)

    def objective(self, method: str, **settings: Any) -> Supervised:
        """Teacher, student and rules of a method."""
        rules = self.methods[method]
        teacher = self.build(1) if rules else None
        return Supervised(AttentionTransfer(teacher, self.build(2), rules), **settings)

    def fit(
        self, what: Objective, path: Path, recipe: ResolvedRecipe | None = None, *, number: int = 20, **settings: Any
    ) -> TrainingResult:
        """Train; validate and test on 11 and 7 images."""
        chosen: dict[str, Any] = {"classes": 5, "loggers": [], "device": "cpu", **settings}
        chosen = {"train": self.images(number), "validation": self.images(11, seed=1), **chosen}
        chosen = {"test": self.images(7, seed=2), **chosen}
        with RunFolder.open(path, {}, overwrite=False) as folder:
            return fit(Training(objective=what, folder=folder.path, recipe=recipe or self.recipe, **chosen))

    def history(self, path: Path) -> list[dict[str, float]]:
        """The rows of a run's metrics, without times."""
        rows = read_metrics(path / "metrics.jsonl")
        return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]

    def weights(self, what: nn.Module) -> dict[str, Tensor]:
        """A copy of what is trained."""
        return {name: value.detach().clone() for name, value in what.named_parameters()}


@pytest.fixture
def tiny(tiny_vit: Callable[..., Any]) -> TinyRuns:
    """Tiny trainings."""
    rules: dict[str, Sequence[Rule]] = {
        "scratch": [],
        "copy": [Copy()],
        "distill": [Distill()],
        "gta": [Guide(weight=1)],
    }
    return TinyRuns(tiny_vit, rules, ResolvedRecipe(epochs=3, batch_size=8, validate_every=1, lr=3e-3, workers=0))


def _place(rank: int) -> dict[str, str]:
    """What torchrun puts into the environment of one of two processes."""
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
    sizes = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
    return {"TORCHELASTIC_RUN_ID": "1", **ranks, **sizes}


@pytest.fixture
def second_of_two() -> dict[str, str]:
    """What torchrun puts into the environment of the second of two processes."""
    return _place(1)


@pytest.fixture
def in_two_processes(python: Python) -> Callable[..., list[CompletedProcess[str]]]:
    """Runs a program twice, side by side, as torchrun would."""

    def run(*words: str) -> list[CompletedProcess[str]]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        there = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        programs = [python.start(*words, env={**there, **_place(rank)}) for rank in range(2)]
        return [program.ended() for program in programs]

    return run
