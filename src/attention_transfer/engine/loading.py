"""Loaders of images: who decodes them, and which of them a process gets."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from attention_transfer.config.recipe import ResolvedRecipe
from attention_transfer.data import ArrayImages
from attention_transfer.engine.hardware import Hardware
from attention_transfer.engine.launchers import cores_of_this_process
from attention_transfer.engine.samplers import (
    EqualBatches,
    SeededItems,
    SeededSampler,
    ShareOfBatches,
    Unrepeated,
)
from attention_transfer.errors import UserError
from attention_transfer.objectives import Images

_SMALL = 64 * 64  # pixels; below, another process costs more than it saves
_MOST_WORKERS = 8  # a device


def choose_workers(images: Images, asked: int | None, hardware: Hardware) -> tuple[int, str]:
    """Processes that load images for one device, and why."""
    if asked is not None:
        return asked, "as asked for"
    inner = getattr(images, "images", None)
    if isinstance(images, TensorDataset):
        return 0, "tensors in memory"
    if isinstance(inner, ArrayImages) and inner.pixels.shape[1] * inner.pixels.shape[2] <= _SMALL:
        return 0, "small images in memory"
    free = max(1, cores_of_this_process(hardware.devices) - 1)
    return min(free, _MOST_WORKERS), f"{free} free cores a device, at most {_MOST_WORKERS} are used"


@contextmanager
def readable_errors() -> Iterator[None]:
    """Raise what a process that loads images says to the user without the traceback that torch puts around it."""
    try:
        yield
    except UserError as error:
        message = str(error)
        if not message.startswith("Caught UserError in DataLoader worker"):
            raise
        raise UserError(message.strip().rpartition("\n")[2].rpartition("UserError: ")[2]) from error


def training_loader(
    images: Images, sampler: SeededSampler, recipe: ResolvedRecipe, hardware: Hardware, workers: int
) -> DataLoader[Any]:
    """This process's shares of the batches.

    One process that loads its own images draws augmentation from its generators as it goes; otherwise each image has
    seeds of its own, so that neither workers nor devices make a difference.
    """
    seeded = workers > 0 or hardware.processes > 1
    batches = ShareOfBatches(
        sampler, recipe.batch_size, process=sampler.process, processes=hardware.processes, seeded=seeded
    )
    return DataLoader(
        SeededItems(images) if seeded else images,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=hardware.device == "cuda",
        generator=sampler.generator,
        worker_init_fn=_end_with_trainer,
    )


def evaluation_loader(
    images: Images, batch_size: int, process: int, hardware: Hardware, workers: int
) -> DataLoader[tuple[Tensor, ...]]:
    """This process's images, each once, in order."""
    place = {"process": process, "processes": hardware.processes}
    how: dict[str, Any] = {"batch_size": batch_size, "sampler": Unrepeated(images, **place)}
    if hardware.sharded:
        how = {"batch_sampler": EqualBatches(images, batch_size, **place)}
    return DataLoader(
        images,
        **how,
        num_workers=0 if isinstance(images, TensorDataset) else workers,
        pin_memory=hardware.device == "cuda",
        generator=torch.Generator().manual_seed(0),  # the loader draws from it, and not from the training's
        worker_init_fn=_end_with_trainer,
    )


def _end_with_trainer(worker: int) -> None:  # noqa: ARG001
    """Let a process that loads images end where the one that trains was killed.

    PyTorch looks whether the process that started this one is still there, which a fork server is for ever.
    """
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        threading.Thread(target=_end_after, args=(trainer.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
