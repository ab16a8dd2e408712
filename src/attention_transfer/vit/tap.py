"""Stand in for a module's forward from outside, and leave no trace afterwards.

A tap is an instance attribute `forward` over the class's own. Unlike a `with` block around a model, it is also there
when gradient checkpointing runs the forward again during the backward pass. Unlike a hook, it does not leak
into copies: a deep copy or a pickle of a tapped module gets an empty tap of its own.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

Forward = Callable[..., Any]
Wrapper = Callable[..., Any]
"""Called as `wrapper(forward, *args, **kwargs)`; calls `forward` or does something else in its place."""


_LOCK = threading.RLock()  # re-entrant: a garbage collection may remove taps while one is attached


class _Tap:
    """The stand-in at one module. The latest wrapper is the outermost."""

    def __init__(self, module: nn.Module, previous: Forward | None) -> None:
        self.module = module
        self.previous = previous  # an instance forward that another library had put there
        self.wrappers: tuple[Wrapper, ...] = ()

    def run(self, *args: Any, **kwargs: Any) -> Any:
        # The wrappers of this run, whatever another thread attaches or removes meanwhile.
        return self._from(self.wrappers, *args, **kwargs)

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """The forward under all wrappers."""
        if self.previous is not None:
            return self.previous(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def _from(self, wrappers: tuple[Wrapper, ...], *args: Any, **kwargs: Any) -> Any:
        if not wrappers:  # in a deep copy
            return self.original(*args, **kwargs)
        inner = self.original if len(wrappers) == 1 else partial(self._from, wrappers[:-1])
        return wrappers[-1](inner, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Tap:
        return _Tap(copy.deepcopy(self.module, memo), copy.deepcopy(self.previous, memo))

    def __getstate__(self) -> dict[str, Any]:
        """A pickle, like a deep copy, has an empty tap."""
        return {"module": self.module, "previous": self.previous, "wrappers": ()}


def is_bare(forward: Forward) -> bool:
    """Whether a wrapper was given the module's own forward, and not another wrapper's."""
    return isinstance(getattr(forward, "__self__", None), _Tap)


class TapHandle:
    """Removes what [`tap`][attention_transfer.vit.tap.tap] attached; safe to call twice."""

    def __init__(self, tapped: _Tap, wrapper: Wrapper) -> None:
        self._tapped: _Tap | None = tapped
        self._wrapper = wrapper

    def remove(self) -> None:
        """Take the wrapper off; the module is as it was once its last wrapper is gone."""
        tapped, self._tapped = self._tapped, None
        if tapped is None:
            return
        with _LOCK:
            tapped.wrappers = tuple(w for w in tapped.wrappers if w is not self._wrapper)
            if tapped.wrappers:
                return
            if tapped.previous is not None:
                tapped.module.forward = tapped.previous
            else:
                tapped.module.__dict__.pop("forward")


def tap(module: nn.Module, wrapper: Wrapper) -> TapHandle:
    """Put `wrapper` around the forward of `module`, outside any wrapper that is there already."""
    with _LOCK:
        current = module.__dict__.get("forward")
        tapped = getattr(current, "__self__", None)
        if not isinstance(tapped, _Tap):
            tapped = _Tap(module, current)
            module.forward = tapped.run
        tapped.wrappers = (*tapped.wrappers, wrapper)
    return TapHandle(tapped, wrapper)


def may_run_again() -> bool:
    """Whether what runs now may run again in the backward pass: inside gradient checkpointing, of either kind."""
    return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread, as it is while checkpointing recomputes a forward."""
    return bool(torch._C._current_graph_task_id() != -1)
