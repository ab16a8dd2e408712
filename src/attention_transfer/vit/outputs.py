"""What a network puts out: its class logits, the outputs of its blocks, what enters its classification layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.hooks import HookHandle, Scope, hook_forward, tensors_in
from attention_transfer.hooks.hook import Forward
from attention_transfer.vit.libraries import anatomy, library_of, unwrapped


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


def head_of(model: nn.Module) -> nn.Linear | None:
    """The layer that gives a ViT's class logits, or `None`."""
    bare = unwrapped(model)
    return library_of(bare).head(bare)


@dataclass
class Watched:
    """What was seen: outputs of blocks, (B, N, width), and features, (B, width), where they were asked for."""

    blocks: dict[int, Tensor] = field(default_factory=dict)
    features: Tensor | None = None


class OutputWatch:
    """Keeps what chosen blocks put out, and what enters the classification layer.

    Args:
        model: a plain vision transformer.
        layers: blocks whose output is wanted.
        features: what enters the classification layer is wanted too.

    Raises:
        UserError: the features are wanted, but the model has no classification layer.
    """

    def __init__(self, model: nn.Module, layers: Iterable[int] = (), *, features: bool = False) -> None:
        self._scope: Scope[Watched] = Scope()
        blocks, head = anatomy(model).blocks, head_of(model) if features else None
        if features and head is None:
            raise UserError(f"{type(model).__name__} has no linear classification layer whose input could be read")
        self.handles: list[HookHandle] = [hook_forward(blocks[i], partial(self._block, i)) for i in layers]
        if head is not None:
            self.handles.append(hook_forward(head, self._head))

    @contextmanager
    def watching(self) -> Iterator[Watched]:
        """Collect the outputs of forwards inside the block, in this thread."""
        with self._scope.run(Watched()) as watched:
            yield watched

    def _block(self, layer: int, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if (watched := self._scope.record) is not None:
            watched.blocks[layer] = next(tensors_in(output))
        return output

    def _head(self, forward: Forward, features: Tensor) -> Any:
        if (watched := self._scope.record) is not None:
            watched.features = features
        return forward(features)
