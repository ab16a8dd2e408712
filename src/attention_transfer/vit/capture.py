"""Collect the attention of a ViT while it runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from attention_transfer.vit.call import POOL, AttentionCall
from attention_transfer.vit.indices import Indices, select
from attention_transfer.vit.seam import attention_modules, listen
from attention_transfer.vit.tap import in_backward


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
    calls: list[AttentionCall] = []
    thread = threading.get_ident()

    def record(call: AttentionCall) -> AttentionCall:
        # Gradient checkpointing runs blocks again in the backward pass; they were recorded in the forward pass.
        if torch.compiler.is_compiling() or (threading.get_ident() == thread and not in_backward()):
            calls.append(call)
        return call

    chosen = select(layers, len(attention_modules(model)), "layers")
    with ExitStack() as stack:
        for handle in listen(model, dict.fromkeys((*chosen, *((POOL,) if pool else ())), record)):
            stack.callback(handle.remove)
        yield calls
