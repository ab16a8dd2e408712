"""Collect the attention of a ViT while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from attention_transfer.attention import POOL, AttentionCall
from attention_transfer.errors import UserError
from attention_transfer.hooks import AttentionHook, Handle, Scope, Site, Skipped, hook_module, in_backward
from attention_transfer.vit.indices import Indices, select
from attention_transfer.vit.libraries import anatomy, library_of


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
        handles.append(hook_module(site, hook, lambda layer=layer: skips(layer)))  # type: ignore[misc]
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
