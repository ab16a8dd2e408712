"""What a forward pass was run with, recalled when its backward pass runs parts of it again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from attention_transfer.vit.outputs import tensors_in
from attention_transfer.vit.tap import Forward, in_backward, tap

State = TypeVar("State")


class Replay(Generic[State]):
    """Tells the modules of a network which step they are part of, also when gradient checkpointing recomputes them.

    Checkpointed blocks run twice: in the forward pass, and again in the middle of the backward pass, when other steps,
    or plain forwards of the network, may have come in between. So each forward's output carries a hook: autograd calls
    it before it walks back through that forward, and the step's state is there again.
    """

    def __init__(self, network: nn.Module) -> None:
        self._running: State | None = None
        self._thread = 0
        self._recalled: State | None = None
        self._network = network
        self.handle = tap(network, self._run)

    @contextmanager
    def step(self, state: State) -> Iterator[None]:
        """Run forwards inside the block with this state."""
        self._running = state
        self._thread = 0 if torch.compiler.is_compiling() else threading.get_ident()
        try:
            yield
        finally:
            self._running = None

    def state(self) -> State | None:
        """The state of the step that the calling module is part of; `None` in a forward outside any step.

        Another thread that runs the network during a step is outside of it.
        """
        if torch.compiler.is_compiling():
            return self._running if self._running is not None else self._recalled
        if self._running is not None and self._thread in (0, threading.get_ident()):
            return self._running
        return self._recalled if in_backward() else None

    def remember(self, tensor: Tensor, state: State | None) -> None:
        """Recall this state when a backward pass comes through `tensor`."""
        if tensor.requires_grad and (not torch.compiler.is_compiling() or self.checkpoints()):
            self._hook(tensor, state)

    def checkpoints(self) -> bool:
        """Whether the network recomputes blocks in its backward pass, by the switch of timm or of transformers."""
        switches = ("grad_checkpointing", "gradient_checkpointing")
        return any(getattr(module, switch, False) is True for module in self._network.modules() for switch in switches)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a graph break, or an error where none is allowed
    def _hook(self, tensor: Tensor, state: State | None) -> None:
        tensor.register_hook(lambda _: self._recall(state))

    def _run(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        self._recalled = None
        state = self._running
        output = forward(*args, **kwargs)
        for tensor in tensors_in(output):
            self.remember(tensor, state)
        return output

    def _recall(self, state: State | None) -> None:
        self._recalled = state
        # Nothing of the step outlives the backward pass: it holds the operands of all layers.
        torch.autograd.Variable._execution_engine.queue_callback(self._forget)

    def _forget(self) -> None:
        self._recalled = None
