"""Wrap a module's forward from outside, and leave no trace afterwards.

The hook is an instance attribute `forward` over the class's own. Unlike a `with` block around a model, it is also there
when gradient checkpointing runs the forward again during the backward pass. Unlike a hook of PyTorch, it does not leak
into copies: a deep copy or a pickle of a hooked module has none of its wrappers.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

Forward = Callable[..., Any]
Wrapper = Callable[..., Any]
"""Called as `wrapper(forward, *args, **kwargs)`; calls `forward` or does something else in its place."""

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
