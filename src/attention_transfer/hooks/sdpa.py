"""See and replace q, k, v, mask and scale of an attention module.

Plain ViTs end in one call, `torch.nn.functional.scaled_dot_product_attention`. A `TorchFunctionMode` that is entered by
the attention module itself sees that call's operands as they really are, after q/k norm, RoPE and masks, and the fused
kernel stays in use. `torch.nn.MultiheadAttention` hides its call; see `multihead.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from attention_transfer.attention import AttentionCall, Tokens, frozen_attention
from attention_transfer.errors import UserError
from attention_transfer.hooks.multihead import projected, run_function, takes_kernel
from attention_transfer.hooks.scope import LOCK, Forward, HookHandle, hook_forward, hooked_of

AttentionHook = Callable[[AttentionCall], AttentionCall | Tensor]
"""Gets each call before it runs; returns it as it is, another whose operands are used instead, or an output."""

Skipped = Literal["", "v", "qk"]
"""Which projections of an attention module can stay zeros, because nobody will use them."""

Projections = Mapping[str, Sequence[nn.Module]]
"""The linear layers of an attention module by what they give, "q", "k", "v" or, in this order in one, "qkv"."""


class StopForward(Exception):
    """Raised by a hook to end a forward at its attention call, which the other hooks there see first."""


@dataclass(frozen=True)
class Site:
    """An attention module.

    Attributes:
        module: the module.
        layer: index of its block; -1 for the attention-pool head.
        tokens: what the keys are tokens of.
        projections: its projections, by what they give.
    """

    module: nn.Module
    layer: int
    tokens: Tokens
    projections: Projections


class _Entry(NamedTuple):
    hook: AttentionHook
    skips: Callable[[], Skipped]


class Handle:
    """Removes what [`hook_module`][attention_transfer.hooks.hook_module] attached; safe to call twice."""

    def __init__(self, hooks: _Hooks, entry: _Entry) -> None:
        self._hooks = hooks
        self._entry = entry

    def remove(self) -> None:
        """Take the hook off its module."""
        with LOCK:
            self._hooks.entries = tuple(entry for entry in self._hooks.entries if entry is not self._entry)
            if not self._hooks.entries:
                self._hooks.handle.remove()


def hook_module(site: Site, hook: AttentionHook, skips: Callable[[], Skipped] = lambda: "") -> Handle:
    """Attach a hook to the attention call of a module; it stays until the handle is removed.

    Hooks of one module are asked in the order in which they were attached: a later one sees what an earlier one
    replaced.

    Args:
        site: the module.
        hook: what is asked.
        skips: asked at each run of the module which projections can stay zeros.
    """
    entry = _Entry(hook, skips)
    with LOCK:
        hooked = hooked_of(site.module)
        found = next((w for w in hooked.wrappers if isinstance(w, _Hooks)), None) if hooked else None
        hooks = found or _Hooks(site)
        hooks.entries = (*hooks.entries, entry)
    return Handle(hooks, entry)


class _Hooks:
    """All hooks on the attention call of one module, as a wrapper of its forward."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.entries: tuple[_Entry, ...] = ()
        self.handle: HookHandle = hook_forward(site.module, self)

    def __call__(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        entries, module = self.entries, self.site.module
        eager = not torch.compiler.is_compiling()
        if eager and isinstance(module, nn.MultiheadAttention) and takes_kernel(module, args[0]):
            # A mode would keep the inference kernel from running, so q, k and v are projected for the hooks alone.
            q, k, v = projected(module, *args[:3])
            seen = AttentionCall(q, k, v, None, module.head_dim**-0.5, self.site.layer, self.site.tokens)
            answer = _asked(entries, seen)
            if isinstance(answer, AttentionCall) and answer.same_operands(seen):
                return forward(*args, **kwargs)
            with _AttentionMode(self.site, (_Entry(lambda _: answer, lambda: ""),), []):
                return forward(*args, **kwargs)
        calls: list[AttentionCall] = []
        with _AttentionMode(self.site, entries, calls):
            output = forward(*args, **kwargs)
        if entries and len(calls) != 1:
            raise UserError(
                f"block {self.site.layer} made {len(calls)} calls of scaled_dot_product_attention where one was "
                "expected, so its attention was not seen; build the model with fused attention "
                "(timm.layers.set_fused_attn(True))"
            )
        return output


def _asked(entries: tuple[_Entry, ...], call: AttentionCall) -> AttentionCall | Tensor:
    """What all hooks make of a call: the operands to use, or an output.

    Raises:
        StopForward: one of them ends the forward; the others were asked all the same.
    """
    used, output, stopped = call, None, False
    for entry in entries:
        try:
            answer = entry.hook(used)
        except StopForward:
            stopped = True
            continue
        if isinstance(answer, AttentionCall) and answer.same_operands(used):
            continue
        if output is not None or (used is not call and _is_frozen(used)):
            raise UserError(
                f"block {call.layer} is bound twice: one AttentionTransfer replaces its attention, and then another; "
                "release the first"
            )
        if isinstance(answer, Tensor):
            output = answer
        else:
            used = answer
    if stopped:
        raise StopForward
    return used if output is None else output


class _AttentionMode(TorchFunctionMode):
    def __init__(self, site: Site, entries: tuple[_Entry, ...], calls: list[AttentionCall]) -> None:
        super().__init__()
        self.site = site
        self.entries = entries
        self.calls = calls
        self.skipped: Skipped = ""
        for entry in entries:
            self.skipped = self.skipped or entry.skips()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return run_function(func, self._attend_heads, *args, **kwargs)
        if self.skipped and func is F.linear:
            return _linear(self.site.projections, self.skipped, *args, **kwargs)
        return func(*args, **kwargs)

    def _attend(
        self,
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
            raise UserError(
                "causal attention is not supported: the blocks of a vision transformer attend over all tokens"
            )
        k_BHND, v_BHND = key, value
        if enable_gqa:  # a group of heads shares its keys and values; hooks see each head's
            groups = query.shape[1] // key.shape[1]
            k_BHND, v_BHND = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        answer = self._ask(query, k_BHND, v_BHND, attn_mask, factor, dropout_p)
        if answer is None:  # the very same arguments, so that looking changes no bit
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, scale=scale, enable_gqa=enable_gqa
            )
        return answer[0]

    def _attend_heads(self, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> tuple[Tensor, AttentionCall] | None:
        """The output of `torch.nn.MultiheadAttention`'s attention and its call, or `None` where nothing is replaced."""
        return self._ask(q, k, v, None, q.shape[-1] ** -0.5, dropout)

    def _ask(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float
    ) -> tuple[Tensor, AttentionCall] | None:
        """The hooks' output and call, or `None` where they leave everything as it is."""
        seen = AttentionCall(q, k, v, mask, scale, self.site.layer, self.site.tokens, dropout)
        self.calls.append(seen)
        answer = _asked(self.entries, seen)
        if isinstance(answer, Tensor):
            return answer, seen
        return None if answer.same_operands(seen) else (attend(answer), answer)


def attend(call: AttentionCall) -> Tensor:
    """The attention of a call, (B, H, N, D); constant queries and keys take the cheaper backward pass."""
    if _is_frozen(call):
        return frozen_attention(call.q, call.k, call.v, scale=call.scale, mask=call.mask)
    return F.scaled_dot_product_attention(call.q, call.k, call.v, call.mask, call.dropout, scale=call.scale)


def _is_frozen(call: AttentionCall) -> bool:
    return not (call.q.requires_grad or call.k.requires_grad) and call.v.requires_grad and call.dropout == 0


def _linear(
    projections: Projections, skipped: Skipped, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """A linear layer of an attention module, with zeros in the place of what nobody will use."""
    for gives, layers in projections.items():
        if not any(weight is layer.weight for layer in layers):
            continue
        if gives == "qkv":
            split, total = 2 * weight.shape[0] // 3, weight.shape[0]
            rows = slice(0, split) if skipped == "v" else slice(split, total)
            kept = F.linear(input, weight[rows], None if bias is None else bias[rows])
            return F.pad(kept, (0, total - split) if skipped == "v" else (split, 0))
        if gives in skipped:
            return input.new_zeros(1).expand(*input.shape[:-1], weight.shape[0])
    return F.linear(input, weight, bias)
