"""What can be seen of a ViT while it runs: its attention, the outputs of its blocks, its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.attention import POOL, AttentionCall
from attention_transfer.errors import UserError
from attention_transfer.hooks import (
    AttentionHook,
    Handle,
    HookHandle,
    Scope,
    Site,
    Skipped,
    StopForward,
    compiling,
    hook_forward,
    hook_module,
    in_backward,
    tensors_in,
)
from attention_transfer.hooks.scope import Forward
from attention_transfer.vit.indices import Indices, select
from attention_transfer.vit.libraries import anatomy, library_of, unwrapped


def attention_modules(model: nn.Module) -> Sequence[nn.Module]:
    """The attention module of each block, in order.

    Raises:
        UserError: the model is no plain vision transformer.
    """
    return anatomy(model).attention


def hook_attention(
    model: nn.Module, hooks: Mapping[int, AttentionHook], *, skips: Callable[[int], Skipped] = lambda _: ""
) -> list[Handle]:
    """Attach a hook to the attention of each named layer; it stays until the handles are removed.

    Args:
        model: a plain vision transformer.
        hooks: by the index of the block; `POOL` (-1) is the attention-pool head.
        skips: asked at each run of a layer which projections can stay zeros, because nobody will use them.

    Raises:
        UserError: the model is no plain vision transformer, or has no pooling head where one is named.
    """
    parts, library = anatomy(model), library_of(model)
    if POOL in hooks and parts.pool is None:
        raise UserError(f"{type(parts.model).__name__} has no attention-pool head")
    handles = []
    for layer, hook in hooks.items():
        module = parts.attention[layer] if layer != POOL else parts.pool
        assert module is not None
        tokens = parts.tokens if layer != POOL else parts.pool_tokens or parts.tokens
        site = Site(module, layer, tokens, library.projections(module))
        handles.append(hook_module(site, hook, partial(skips, layer)))
    return handles


def carries_gradient(model: nn.Module, call: AttentionCall) -> bool:
    """Whether a loss on this call can train the block: false where re-entrant checkpointing hid it from autograd."""
    if call.layer == POOL or any(x is not None and x.requires_grad for x in (call.q, call.k, call.v, call.mask)):
        return True
    trainable = any(p.requires_grad for p in attention_modules(model)[call.layer].parameters())
    return not (trainable and torch.is_grad_enabled())


@contextmanager
def capture(model: nn.Module, *, layers: Indices = None, pool: bool = False) -> Iterator[list[AttentionCall]]:
    """Collect the attention calls of every forward of `model` inside the `with` block.

    The model's output is bitwise what it is without, and nothing stays on the model, also after an exception. Forwards
    of the same model in other threads are not collected, unless the model is compiled. A compiled model is compiled
    anew for each further forward in one block; use a block for each.

    Args:
        model: a plain vision transformer of timm, Hugging Face transformers or torchvision, also inside
            `DistributedDataParallel`, `fully_shard` or `torch.compile`.
        layers: which blocks: `None` for all, n for the last n, or indices (negative from the end).
        pool: also collect the call of the attention-pool head (SigLIP, PE), as layer -1.

    Yields:
        A list that grows by one [`AttentionCall`][attention_transfer.AttentionCall] a block as the model runs.

    Raises:
        UserError: the model has no supported attention, an index lies outside it, or a block ran without the fused
            attention call, so that its operands were not seen.

    Example:
        ```python
        with capture(model, layers=[-1]) as calls:
            model(images)
        last_maps = calls[0].maps()
        ```
    """
    scope: Scope[list[AttentionCall]] = Scope()

    def record(call: AttentionCall) -> AttentionCall:
        # Gradient checkpointing runs blocks again in the backward pass; they were recorded in the forward pass.
        if (calls := scope.record) is not None and not in_backward():
            calls.append(call)
        return call

    chosen = select(layers, len(attention_modules(model)), "layers")
    with ExitStack() as stack:
        for handle in hook_attention(model, dict.fromkeys((*chosen, *((POOL,) if pool else ())), record)):
            stack.callback(handle.remove)
        yield stack.enter_context(scope.run([]))


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
