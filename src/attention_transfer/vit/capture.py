"""The one seam: see and replace q, k, v, mask and scale of every attention block of a ViT.

Plain ViTs end in one call, `torch.nn.functional.scaled_dot_product_attention`. A `TorchFunctionMode` that is entered by
the attention module itself (see `tap.py`) stands at that call: it sees the operands as they really are, after q/k norm,
RoPE and masks, and the fused kernel stays in use.

Shapes: B batch, H heads, N tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from attention_transfer.attention import attention_logits, attention_maps, class_logits
from attention_transfer.errors import UserError
from attention_transfer.vit.indices import Indices, select
from attention_transfer.vit.tap import Forward, TapHandle, in_backward, tap


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """The operands of one block's attention. Nothing is computed until it is asked for.

    Attributes:
        q: queries, (B, H, N, D), as they enter the product: after q/k norm and position rotation.
        k: keys, (B, H, N, D).
        v: values, (B, H, N, D).
        mask: additive or boolean mask or bias, broadcastable to (B, H, N, N), or `None`.
        scale: factor on q·kᵀ.
        layer: index of the block, from 0.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float
    layer: int

    def logits(self) -> Tensor:
        """Attention logits, (B, H, N, N)."""
        return attention_logits(self.q, self.k, scale=self.scale, mask=self.mask)

    def maps(self) -> Tensor:
        """Attention maps, (B, H, N, N); rows sum to one."""
        return attention_maps(self.q, self.k, scale=self.scale, mask=self.mask)

    def class_logits(self) -> Tensor:
        """The class token's row of the logits, (B, H, N)."""
        return class_logits(self.q, self.k, scale=self.scale, mask=self.mask)


Listener = Callable[[AttentionCall], AttentionCall]
"""Gets each call before it runs; returns it as it is, or another whose operands are used instead."""


def attention_modules(model: nn.Module) -> Sequence[nn.Module]:
    """The attention module of each block, in order.

    Raises:
        UserError: the model is not a plain timm vision transformer.
    """
    blocks = getattr(model, "blocks", None)
    modules = (
        [getattr(block, "attn", None) for block in blocks] if isinstance(blocks, nn.Sequential | nn.ModuleList) else []
    )
    found = [module for module in modules if isinstance(module, nn.Module) and _attends_over_tokens(module)]
    if not found or len(found) != len(modules):
        raise UserError(
            f"{type(model).__name__} has no supported attention: a plain timm vision transformer is needed, "
            "one with .blocks[i].attn (ViT, DeiT, DINOv2, DINOv3, BEiT, CLIP, EVA-02, SigLIP, …)"
        )
    return found


def _attends_over_tokens(module: nn.Module) -> bool:
    """Whether it is timm's attention of tokens to tokens; talking heads (CaiT) and channels (XCiT) are other shapes."""
    return hasattr(module, "fused_attn") and not hasattr(module, "temperature")


def listen(model: nn.Module, listeners: dict[int, Listener]) -> list[TapHandle]:
    """Attach a listener to the attention of each named layer; it stays until the handles are removed."""
    modules = attention_modules(model)
    return [tap(modules[layer], partial(_intercepted, layer, listener)) for layer, listener in listeners.items()]


@contextmanager
def capture(model: nn.Module, *, layers: Indices = None) -> Iterator[list[AttentionCall]]:
    """Collect the attention calls of every forward of `model` inside the `with` block.

    The model's output is bitwise what it is without, and nothing stays on the model, also after an exception.

    Args:
        model: a plain timm vision transformer.
        layers: which blocks: `None` for all, n for the last n, or indices (negative from the end).

    Yields:
        A list that grows by one [`AttentionCall`][attention_transfer.AttentionCall] a block as the model runs.

    Raises:
        UserError: the model has no supported attention, or an index lies outside it.
        RuntimeError: a block ran without the fused attention call, so that its operands were not seen.

    Example:
        ```python
        with capture(model, layers=[-1]) as calls:
            model(images)
        last_maps = calls[0].maps()
        ```
    """
    calls: list[AttentionCall] = []

    def record(call: AttentionCall) -> AttentionCall:
        # Gradient checkpointing runs blocks again in the backward pass; they were recorded in the forward pass.
        if torch.compiler.is_compiling() or not in_backward():
            calls.append(call)
        return call

    chosen = select(layers, len(attention_modules(model)), "layers")
    with ExitStack() as stack:
        for handle in listen(model, dict.fromkeys(chosen, record)):
            stack.callback(handle.remove)
        yield calls


def _intercepted(layer: int, listener: Listener, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    """Run an attention module's forward with the listener at its attention call."""
    heard: list[AttentionCall] = []

    def hear(call: AttentionCall) -> AttentionCall:
        heard.append(call)
        return listener(call)

    with _AttentionMode(layer, hear):
        output = forward(*args, **kwargs)
    if len(heard) != 1:
        raise RuntimeError(
            f"block {layer} made {len(heard)} calls of scaled_dot_product_attention where one was expected, so its "
            "attention was not seen; build the model with fused attention (timm.layers.set_fused_attn(True))"
        )
    return output


class _AttentionMode(TorchFunctionMode):
    def __init__(self, layer: int, listener: Listener) -> None:
        super().__init__()
        self.layer = layer
        self.listener = listener

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return _attend(self.layer, self.listener, *args, **kwargs)


def _attend(
    layer: int,
    listener: Listener,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if is_causal or enable_gqa:
        raise UserError(f"block {layer} uses causal attention or grouped keys, which are not supported")
    seen = AttentionCall(query, key, value, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale, layer)
    used = listener(seen)
    if used is seen:  # the very same arguments, so that looking changes no bit
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, scale=scale)
    return F.scaled_dot_product_attention(used.q, used.k, used.v, used.mask, dropout_p, scale=used.scale)


def carries_gradient(model: nn.Module, call: AttentionCall) -> bool:
    """Whether a loss on this call can train the block: false where re-entrant checkpointing hid it from autograd."""
    trainable = any(p.requires_grad for p in attention_modules(model)[call.layer].parameters())
    return call.q.requires_grad or call.k.requires_grad or not (trainable and torch.is_grad_enabled())
