"""The CPU in the place of a card, for a rehearsal at tiny sizes; what it measures means nothing."""

from __future__ import annotations

import atexit
import gc
import importlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from attention_transfer.experiments.runners import Runner
from attention_transfer.experiments.steps import Bench, TimedStep, step_of, teacher_of
from attention_transfer.vit import save_vit
from benchmarks.gpu.card import Call, Card, Device, Job


class StandIn(Card):
    """The CPU, where every stage is rehearsed at tiny sizes."""

    device: Device = "cpu"
    processes: Literal["forkserver", "fork"] = "fork"  # spares a rehearsal the imports; a card would not survive it
    rehearsed = True

    def facts(self) -> dict[str, Any]:
        return {"card": "none: a rehearsal on the CPU", "driver": None, "memory_bytes": None}

    def events(self, *calls: Call) -> list[float]:
        times = []
        for call in calls:
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
        return times

    def graph(self, call: Call) -> Call:
        return call

    def peak(self, call: Call) -> int:
        call()
        return 0

    def free(self) -> int:
        return 1 << 30

    def clear(self) -> None:
        gc.collect()

    @contextmanager
    def squeezed(self, leave: int, most_images: int) -> Iterator[None]:  # noqa: ARG002 - for the card
        """Let convolutions, which every ViT begins with, have memory for so many images only."""

        def refuse(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if isinstance(module, nn.Conv2d) and len(inputs[0]) > most_images:
                raise torch.OutOfMemoryError("out of memory, as a rehearsal pretends")

        hook = register_module_forward_pre_hook(refuse)
        try:
            yield
        finally:
            hook.remove()

    def _runner(self, method: str, setting: Bench) -> Runner:
        return _Here(method, setting)

    def apart(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
        for job, *arguments in jobs:
            try:
                yield (job, *arguments), job(*arguments)
            except Exception as error:  # noqa: BLE001 - as on the card, it is handed over
                yield (job, *arguments), error

    def sanitized(self, module: str, arguments: Sequence[str]) -> str | None:
        importlib.import_module(module).main(list(arguments))
        return None


@cache
def tiny_vit() -> str:
    """The folder of a small ViT for images of 8 pixels, which a rehearsal runs in place of a large one."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 1}
    grey = {"mean": (0.5,), "std": (0.5,)}
    model = timm.create_model("vit_tiny_patch16_224", **sizes, num_classes=10, pretrained_cfg_overlay=grey)
    save_vit(model, Path(folder) / "model")
    return f"{folder}/model"


class _Here:
    """A method in this process, on the CPU; memory is not counted."""

    memory = 0

    def __init__(self, method: str, setting: Bench) -> None:
        self._step: TimedStep | None = step_of(method, teacher_of(setting), setting)
        self._step()

    def seconds(self) -> float:
        assert self._step is not None
        start = time.perf_counter()
        self._step()
        return time.perf_counter() - start

    def close(self) -> None:
        self._step = None
