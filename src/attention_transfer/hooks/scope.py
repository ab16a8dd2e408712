"""Hooks on the forward of a module, and which forward they are part of.

A hook is an instance attribute `forward` over the class's own. Unlike a `with` block around a model, it is also there
when gradient checkpointing runs the forward again during the backward pass. Unlike a hook of PyTorch, it does not leak
into copies: a deep copy or a pickle of a hooked module has none of its wrappers. A `Scope` tells hooks which forward is
running: of which step, in which thread, for the first time or again, eager or compiled.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.utils.module_tracker import ModuleTracker

Record = TypeVar("Record")
Forward = Callable[..., Any]
Wrapper = Callable[..., Any]
"""Called as `wrapper(forward, *args, **kwargs)`; calls `forward` or does something else in its place."""

_TRACKER = ModuleTracker()  # never entered, so that it tracks nothing: it is only asked whether a backward pass runs
LOCK = threading.RLock()  # re-entrant: a garbage collection may remove hooks while one is attached


class Hooked:
    """The stand-in for one module's forward. The latest wrapper is the outermost."""

    def __init__(self, module: nn.Module, previous: Forward | None) -> None:
        self.module = module
        self.previous = previous  # an instance forward that another library had put there
        self.wrappers: tuple[Wrapper, ...] = ()

    def run(self, *args: Any, **kwargs: Any) -> Any:
        # The wrappers of this run, whatever another thread attaches or removes meanwhile.
        return self._from(self.wrappers, *args, **kwargs)

    def _from(self, wrappers: tuple[Wrapper, ...], *args: Any, **kwargs: Any) -> Any:
        if wrappers:
            return wrappers[-1](partial(self._from, wrappers[:-1]), *args, **kwargs)
        if self.previous is not None:
            return self.previous(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hooked:
        return Hooked(copy.deepcopy(self.module, memo), copy.deepcopy(self.previous, memo))

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "previous": self.previous, "wrappers": ()}


class HookHandle:
    """Removes what [`hook_forward`][attention_transfer.hooks.hook_forward] attached; safe to call twice."""

    def __init__(self, hooked: Hooked, wrapper: Wrapper) -> None:
        self._hooked: Hooked | None = hooked
        self._wrapper = wrapper

    def remove(self) -> None:
        """Take the wrapper off; the module is as it was once its last wrapper is gone."""
        hooked, self._hooked = self._hooked, None
        if hooked is None:
            return
        with LOCK:
            hooked.wrappers = tuple(w for w in hooked.wrappers if w is not self._wrapper)
            if hooked.wrappers:
                return
            if hooked.previous is not None:
                hooked.module.forward = hooked.previous
            else:
                hooked.module.__dict__.pop("forward")


def hook_forward(module: nn.Module, wrapper: Wrapper) -> HookHandle:
    """Put `wrapper` around the forward of `module`, outside any wrapper that is there already."""
    with LOCK:
        hooked = hooked_of(module)
        if hooked is None:
            hooked = Hooked(module, module.__dict__.get("forward"))
            module.forward = hooked.run
        hooked.wrappers = (*hooked.wrappers, wrapper)
    return HookHandle(hooked, wrapper)


def hooked_of(module: nn.Module) -> Hooked | None:
    """What stands in for a module's forward, if anything does."""
    hooked = getattr(module.__dict__.get("forward"), "__self__", None)
    return hooked if isinstance(hooked, Hooked) else None


class Scope(Generic[Record]):
    """Tells the hooks on a network which forward they are part of.

    Forwards inside `run(record)` belong to that record; for all others, and for those of other threads, `record` is
    `None`, and the hooks leave the network alone. Compiled code does not know its thread.

    Args:
        network: tell the hooks also when gradient checkpointing runs blocks of this network again. That happens in the
            middle of the backward pass, when other forwards may have come in between. So each forward's output carries
            a hook: autograd calls it before it walks back through that forward, and its record is there again.
        recomputes: whether gradient checkpointing is on, which is asked where code is compiled.
    """

    def __init__(self, network: nn.Module | None = None, *, recomputes: Callable[[], bool] = lambda: False) -> None:
        self._running: Record | None = None
        self._thread: int | None = None
        self._recalled: Record | None = None
        self.recomputes = recomputes
        self._hook = _register_hook if network is None else _outside_graphs()
        self.handles: list[HookHandle] = [] if network is None else [hook_forward(network, self._forward)]

    @contextmanager
    def run(self, record: Record) -> Iterator[Record]:
        """Forwards inside the block belong to this record."""
        self._thread = None if torch.compiler.is_compiling() else threading.get_ident()  # first: others may look now
        self._running = record
        try:
            yield record
        finally:
            self._running = None

    @property
    def record(self) -> Record | None:
        """The record of the forward that the caller is part of, or `None`."""
        if torch.compiler.is_compiling():
            return self._running if self._running is not None else self._recalled
        if self._running is not None and self._thread in (None, threading.get_ident()):
            return self._running
        return self._recalled if self._recalled is not None and in_backward() else None

    def recall(self, tensor: Tensor, record: Record | None) -> None:
        """Have this record there again when a backward pass comes through `tensor`."""
        if tensor.requires_grad and (not torch.compiler.is_compiling() or self.recomputes()):
            self._hook(tensor, partial(self._recall, record))

    def _forward(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        self._recalled = None
        record = self._running
        output = forward(*args, **kwargs)
        for tensor in tensors_in(output):
            self.recall(tensor, record)
        return output

    def _recall(self, record: Record | None, _: Tensor) -> None:
        self._recalled = record
        # Nothing of the step outlives the backward pass: it holds the operands of all layers.
        torch.autograd.Variable._execution_engine.queue_callback(self._forget)

    def _forget(self) -> None:
        self._recalled = None


def _register_hook(tensor: Tensor, hook: Callable[[Tensor], None]) -> None:
    tensor.register_hook(hook)


@cache
def _outside_graphs() -> Callable[[Tensor, Callable[[Tensor], None]], None]:
    """`_register_hook` as a graph break, or an error where none is allowed; made late, as it loads the compiler."""
    return torch.compiler.disable(_register_hook)  # type: ignore[no-any-return]


def compiling() -> bool:
    """Whether the compiler traces the caller."""
    return torch.compiler.is_compiling()


def in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread, as it is while checkpointing recomputes a forward."""
    return not torch.compiler.is_compiling() and bool(_TRACKER.is_bw)


def may_run_again() -> bool:
    """Whether what runs now may run again in the backward pass: inside gradient checkpointing, of either kind."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return True
    try:
        with disable_saved_tensors_hooks("there are some"):  # by which checkpointing of the other kind works
            return False
    except RuntimeError:  # they can't be disabled where there are some
        return True


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
