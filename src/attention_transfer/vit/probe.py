"""A frozen model run only as far as its attention is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.attention import POOL, AttentionCall
from attention_transfer.hooks import Scope, Skipped, StopForward, compiling
from attention_transfer.vit.capture import hook_attention


class AttentionProbe:
    """Runs a frozen model and gives the attention calls of some layers, at the cost of these and no more.

    The forward stops at the attention call of the last layer: its values (where they are projected by themselves, or by
    one layer with queries and keys), what comes after the product of queries and keys, later blocks and the head never
    run. A capture that was attached before sees zeros for those values. Under `torch.compile` the forward is traced to
    its end, and the compiler drops what nothing depends on.

    Args:
        model: a plain vision transformer; put it in eval mode first.
        layers: blocks whose calls are wanted; -1 is the attention-pool head.
        values: also the values of the last layer are wanted.
        keep: what to keep of a call; default all of it.
        whole: run the model to its end, for its output (`run`).
        dtype: autocast to this precision; `None` runs in the precision that is current.
        compiled: run the model through `torch.compile`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[int],
        *,
        values: bool = False,
        keep: Callable[[AttentionCall], AttentionCall] = lambda call: call,
        whole: bool = False,
        dtype: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        self.model = model
        self.layers = tuple(sorted(set(layers)))
        self.dtype = dtype
        self._whole = whole
        self._last = POOL if POOL in self.layers else max(self.layers, default=POOL)
        self._values = values
        self._keep = keep
        self._scope: Scope[dict[int, AttentionCall]] = Scope()
        self.handles = hook_attention(model, dict.fromkeys(self.layers, self._see), skips=self._skips)
        self._run = torch.compile(self._forward) if compiled else self._forward

    def __call__(self, images: Tensor) -> dict[int, AttentionCall]:
        """The calls by layer, of images (B, channels, height, width); without gradients."""
        return self.run(images)[0]

    @torch.no_grad()
    def run(self, images: Tensor) -> tuple[dict[int, AttentionCall], Any]:
        """The calls by layer, and the output of a model that runs as a whole (else `None`).

        A model with half-precision weights gets the images in its own precision.
        """
        precision = nullcontext() if self.dtype is None else torch.autocast(images.device.type, self.dtype)
        with precision:
            return self._run(images.to(next(p.dtype for p in self.model.parameters() if p.is_floating_point())))

    def release(self) -> None:
        """Take everything off the model that this probe attached."""
        for handle in self.handles:
            handle.remove()

    def _forward(self, images: Tensor) -> tuple[dict[int, AttentionCall], Any]:
        with self._scope.run({}) as calls:
            if compiling():
                output = self.model(images)
                return calls, output if self._whole else None
            try:
                return calls, self.model(images)
            except StopForward:
                return calls, None

    def _stops(self, layer: int) -> bool:
        return layer == self._last and not (self._whole or compiling())

    def _skips(self, layer: int) -> Skipped:
        return "v" if self._stops(layer) and not self._values and self._scope.record is not None else ""

    def _see(self, call: AttentionCall) -> AttentionCall:
        if (calls := self._scope.record) is not None:
            calls[call.layer] = self._keep(call)
            if self._stops(call.layer):
                raise StopForward
        return call
