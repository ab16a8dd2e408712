"""The one seam: see and replace q, k, v, mask and scale of every attention block of a ViT.

Plain ViTs end in one call, `torch.nn.functional.scaled_dot_product_attention`. A `TorchFunctionMode` that is entered by
the attention module itself (see `tap.py`) stands at that call: it sees the operands as they really are, after q/k norm,
RoPE and masks, and the fused kernel stays in use. `torch.nn.MultiheadAttention` hides its call; see `multihead.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from attention_transfer.attention import distilled_attention, frozen_attention
from attention_transfer.errors import UserError
from attention_transfer.vit.call import POOL, AttentionCall
from attention_transfer.vit.libraries import anatomy
from attention_transfer.vit.multihead import projected, run_function, takes_kernel
from attention_transfer.vit.tap import Forward, TapHandle, is_bare, tap
from attention_transfer.vit.tokens import Tokens

Listener = Callable[[AttentionCall], AttentionCall | Tensor]
"""Gets each call before it runs; returns it as it is, another whose operands are used instead, or an output."""


Skipped = Literal["", "values", "queries and keys"]
"""Which projections of an attention module nobody will use."""

# Names of projections of their own, in timm and in transformers.
_VALUES = ("v_proj", "value")
_QUERIES_AND_KEYS = ("q_proj", "query", "k_proj", "key")


class EnoughSeen(Exception):
    """Raised by a listener to end a forward at its call, which those that listen from further out hear first."""

    def __init__(self, call: AttentionCall) -> None:
        self.call = call


def attention_modules(model: nn.Module) -> Sequence[nn.Module]:
    """The attention module of each block, in order.

    Raises:
        UserError: the model is no plain vision transformer.
    """
    return anatomy(model).attention


def listen(
    model: nn.Module, listeners: Mapping[int, Listener], *, skips: Callable[[int], Skipped] = lambda _: ""
) -> list[TapHandle]:
    """Attach a listener to the attention of each named layer; it stays until the handles are removed.

    Args:
        model: a plain vision transformer.
        listeners: by the index of the block; `POOL` (-1) is the attention-pool head.
        skips: asked at each run of a layer which projections can stay zeros, because nobody will use them.

    Raises:
        UserError: the model is no plain vision transformer, or has no pooling head where one is named.
    """
    parts = anatomy(model)
    if POOL in listeners and parts.pool is None:
        raise UserError(f"{type(parts.model).__name__} has no attention-pool head")
    handles = []
    for layer, listener in listeners.items():
        module = parts.attention[layer] if layer != POOL else parts.pool
        assert module is not None
        tokens = parts.tokens if layer != POOL else parts.pool_tokens or parts.tokens
        seat = _Seat(layer, tokens, module, listener, skips)
        handles.append(tap(module, partial(_intercepted, seat)))
    return handles


def carries_gradient(model: nn.Module, call: AttentionCall) -> bool:
    """Whether a loss on this call can train the block: false where re-entrant checkpointing hid it from autograd."""
    if call.layer == POOL:
        return True
    trainable = any(p.requires_grad for p in attention_modules(model)[call.layer].parameters())
    carried = any(x is not None and x.requires_grad for x in (call.q, call.k, call.v, call.mask))
    return carried or not (trainable and torch.is_grad_enabled())


@dataclass(frozen=True)
class _Seat:
    """Where a listener sits."""

    layer: int
    tokens: Tokens
    module: nn.Module
    listener: Listener
    skips: Callable[[int], Skipped]


def _intercepted(seat: _Seat, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    """Run an attention module's forward with the listener at its attention call."""
    heard: list[AttentionCall] = []

    def hear(call: AttentionCall) -> AttentionCall | Tensor:
        heard.append(call)
        return seat.listener(call)

    eager = not torch.compiler.is_compiling()
    if eager and isinstance(seat.module, nn.MultiheadAttention) and takes_kernel(seat.module, args[0]):
        return _around_kernel(seat, seat.module, hear, forward, *args, **kwargs)
    try:
        with _AttentionMode(seat, hear):
            output = forward(*args, **kwargs)
    except EnoughSeen as stop:
        if not heard:
            seat.listener(stop.call)
        raise
    if len(heard) != 1:
        raise UserError(
            f"block {seat.layer} made {len(heard)} calls of scaled_dot_product_attention where one was expected, so "
            "its attention was not seen; build the model with fused attention (timm.layers.set_fused_attn(True))"
        )
    return output


_waiting = threading.local()


def _around_kernel(
    seat: _Seat, module: nn.MultiheadAttention, listener: Listener, forward: Forward, *args: Any, **kwargs: Any
) -> Any:
    """Leave an inference kernel as it is, where no listener replaces anything; q, k and v are projected for them alone.

    A mode would keep the kernel from running. So the listeners of one module wait for the innermost, which asks them
    all in turn, and runs the module.
    """
    waiting: list[Listener] = _waiting.__dict__.setdefault("listeners", [])
    waiting.append(listener)
    try:
        if not is_bare(forward):
            return forward(*args, **kwargs)
        q, k, v = projected(module, *args[:3])
        seen = AttentionCall(q, k, v, None, module.head_dim**-0.5, seat.layer, seat.tokens)
        used: AttentionCall | Tensor = seen
        enough: EnoughSeen | None = None
        for hear in reversed(waiting):
            if isinstance(used, AttentionCall):
                try:
                    used = hear(used)
                except EnoughSeen as stop:
                    enough = stop
        if enough is not None:
            raise enough
        if isinstance(used, AttentionCall) and _same_operands(used, seen):
            return forward(*args, **kwargs)
        with _AttentionMode(seat, lambda _: used):
            return forward(*args, **kwargs)
    finally:
        waiting.pop()


class _AttentionMode(TorchFunctionMode):
    def __init__(self, seat: _Seat, listener: Listener) -> None:
        super().__init__()
        self.seat = seat
        self.listener = listener
        self.skipped = seat.skips(seat.layer)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attend(self.seat, self.listener, *args, **kwargs)
        if func is F.multi_head_attention_forward:
            return run_function(func, partial(_heard, self.seat, self.listener), *args, **kwargs)
        if func is distilled_attention or func is frozen_attention:
            return _attend_again(self.seat, self.listener, func, *args, **kwargs)
        if self.skipped and func is F.linear:
            return _linear(self.seat.module, self.skipped, *args, **kwargs)
        return func(*args, **kwargs)


def _attend(
    seat: _Seat,
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
    if is_causal:
        raise UserError("causal attention is not supported: the blocks of a vision transformer attend over all tokens")
    k_BHND, v_BHND = key, value
    if enable_gqa:  # a group of heads shares its keys and values; listeners see each head's
        groups = query.shape[1] // key.shape[1]
        k_BHND, v_BHND = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    seen = AttentionCall(query, k_BHND, v_BHND, attn_mask, factor, seat.layer, seat.tokens, dropout_p)
    used = listener(seen)
    if isinstance(used, Tensor):
        return used
    if _same_operands(used, seen):  # the very same arguments, so that looking changes no bit
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, scale=scale, enable_gqa=enable_gqa
        )
    return attend(used)


def _heard(
    seat: _Seat, listener: Listener, q: Tensor, k: Tensor, v: Tensor, dropout: float
) -> tuple[Tensor, AttentionCall] | None:
    """The output of `torch.nn.MultiheadAttention`'s attention and its call, or `None` where nothing is replaced."""
    seen = AttentionCall(q, k, v, None, q.shape[-1] ** -0.5, seat.layer, seat.tokens, dropout)
    used = listener(seen)
    if isinstance(used, Tensor):
        return used, seen
    return None if _same_operands(used, seen) else (attend(used), used)


def _attend_again(
    seat: _Seat,
    listener: Listener,
    func: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """A call that another listener at the same module has made in the place of the module's own."""
    scale = kwargs.get("scale", kwargs.get("scale_s"))
    mask = kwargs.get("mask", kwargs.get("mask_s"))
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    seen = AttentionCall(q, k, v, mask, factor, seat.layer, seat.tokens)
    used = listener(seen)
    if isinstance(used, Tensor) or not _same_operands(used, seen):
        raise UserError(
            f"block {seat.layer} is bound twice: one AttentionTransfer replaces its attention, and then "
            "another; release the first"
        )
    return func(q, k, v, *args, **kwargs)


def attend(call: AttentionCall) -> Tensor:
    """The attention of a call, (B, H, N, D); constant queries and keys take the cheaper backward pass."""
    if not (call.q.requires_grad or call.k.requires_grad) and call.v.requires_grad and call.dropout == 0:
        return frozen_attention(call.q, call.k, call.v, scale=call.scale, mask=call.mask)
    return F.scaled_dot_product_attention(call.q, call.k, call.v, call.mask, call.dropout, scale=call.scale)


def _same_operands(a: AttentionCall, b: AttentionCall) -> bool:
    return a.q is b.q and a.k is b.k and a.v is b.v and a.mask is b.mask and a.scale == b.scale


def _linear(
    attention: nn.Module,
    skipped: Skipped,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """A linear layer of an attention module, with zeros in the place of what nobody will use."""
    fused = getattr(attention, "qkv", None)
    if fused is not None and weight is fused.weight:
        split, total = 2 * weight.shape[0] // 3, weight.shape[0]
        rows = slice(0, split) if skipped == "values" else slice(split, total)
        kept = F.linear(input, weight[rows], None if bias is None else bias[rows])
        return F.pad(kept, (0, total - split) if skipped == "values" else (split, 0))
    names = _VALUES if skipped == "values" else _QUERIES_AND_KEYS
    if any(weight is m.weight for n, m in attention.named_modules() if n.rpartition(".")[2] in names):
        return input.new_zeros(1).expand(*input.shape[:-1], weight.shape[0])
    return F.linear(input, weight, bias)
