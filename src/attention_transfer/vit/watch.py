"""What a network's blocks put out, and what enters its classification layer, as a forward pass goes by."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.vit.libraries import anatomy, library_of, unwrapped
from attention_transfer.vit.outputs import tensors_in
from attention_transfer.vit.tap import Forward, TapHandle, tap


@dataclass
class Watched:
    """What went by: outputs of blocks, (B, N, width), and features, (B, width), where they were asked for."""

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
        self._now: Watched | None = None
        self._thread = 0
        blocks, head = anatomy(model).blocks, head_of(model) if features else None
        if features and head is None:
            raise UserError(f"{type(model).__name__} has no linear classification layer whose input could be read")
        self.handles: list[TapHandle] = [tap(blocks[layer], partial(self._block, layer)) for layer in layers]
        if head is not None:
            self.handles.append(tap(head, self._head))

    @contextmanager
    def watching(self) -> Iterator[Watched]:
        """Collect what goes by inside the block, in this thread."""
        self._now = watched = Watched()
        self._thread = 0 if torch.compiler.is_compiling() else threading.get_ident()
        try:
            yield watched
        finally:
            self._now = None

    def _block(self, layer: int, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if self._now is not None and self._is_here():
            self._now.blocks[layer] = next(tensors_in(output))
        return output

    def _head(self, forward: Forward, features: Tensor) -> Any:
        if self._now is not None and self._is_here():
            self._now.features = features
        return forward(features)

    def _is_here(self) -> bool:
        """Whether the forward is of the thread that watches: others may run the model too."""
        return torch.compiler.is_compiling() or self._thread in (0, threading.get_ident())


def head_of(model: nn.Module) -> nn.Linear | None:
    """The layer that gives a ViT's class logits, or `None`."""
    bare = unwrapped(model)
    return library_of(bare).head(bare)
