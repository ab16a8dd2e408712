"""Doing with less memory: gradient checkpointing, and smaller micro-batches when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from attention_transfer.errors import UserError
from attention_transfer.vit import library_of, unwrapped


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()


class OutOfMemory(RuntimeError):
    """A device has no memory left, in a training step or in evaluation."""

    def __init__(self, error: BaseException, *, evaluating: bool) -> None:
        super().__init__(str(error).split("\n", 1)[0])
        self.evaluating = evaluating


@contextmanager
def telling_of_memory(*, evaluating: bool) -> Iterator[None]:
    """Raise what says that memory ran out inside the block as `OutOfMemory`, and all other errors as they are."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, OutOfMemory) or not ran_out_of_memory(error):
            raise
        raise OutOfMemory(error, evaluating=evaluating) from error


def can_checkpoint(vit: nn.Module) -> list[str]:
    """Why a network can't compute activations again, a sentence; nothing where it can."""
    inner = unwrapped(vit)
    if library_of(inner).can_recompute(inner):
        return []
    return [f"recipe.checkpoint_gradients: {type(inner).__name__} can't compute its blocks again; leave it out"]


@contextmanager
def checkpointed_gradients(vit: nn.Module, *, on: bool) -> Iterator[None]:
    """Compute the activations of a network's blocks again in the backward pass, inside the block.

    Raises:
        UserError: the network can't do that.
    """
    if not on:
        yield
        return
    for problem in can_checkpoint(vit):
        raise UserError(problem)
    inner = unwrapped(vit)
    library = library_of(inner)
    library.recompute(inner, on=True)
    try:
        yield
    finally:
        library.recompute(inner, on=False)
