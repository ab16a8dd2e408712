"""What a network's forward gives, in whatever form its library gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from attention_transfer.errors import UserError


def logits_of(output: Any) -> Tensor:
    """The class logits, (B, classes), of a network's output: a tensor, or a record with `logits` (transformers).

    Raises:
        UserError: the output has no logits.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"the student gives {type(output).__name__} without class logits; make it with a head, e.g. with "
            "student_like(teacher, num_classes=…)"
        )
    return logits


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Every tensor of an output, through lists, tuples and dictionaries."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors_in(value)
