"""Doing with less memory: gradient checkpointing, and smaller micro-batches when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from attention_transfer.errors import UserError
from attention_transfer.vit import unwrapped


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
    inner: Any = unwrapped(vit)
    if hasattr(inner, "set_grad_checkpointing") or getattr(inner, "supports_gradient_checkpointing", False):
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
    inner: Any = unwrapped(vit)
    if hasattr(inner, "set_grad_checkpointing"):  # timm
        inner.set_grad_checkpointing(True)
        try:
            yield
        finally:
            inner.set_grad_checkpointing(False)
        return
    # transformers. Re-entrant checkpointing would hide queries and keys from the rules.
    inner.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        inner.activation_checkpointing_disable()
