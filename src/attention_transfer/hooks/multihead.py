"""The seam of `torch.nn.MultiheadAttention` (torchvision's ViTs, the pooling head of Hugging Face's SigLIP).

Its attention runs inside one function, `F.multi_head_attention_forward`, where no mode can look, or inside one fused
kernel, which inference takes where nothing overrides the function. So q, k and v are projected here, by the very
operations of that function, and the attention is called in the open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.attention import AttentionCall
from attention_transfer.errors import UserError

Attend = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, AttentionCall] | None]
"""Gets q, k, v (B, H, tokens, D) and the dropout; gives output and call, or `None` where it replaces nothing."""


def takes_kernel(module: nn.MultiheadAttention, query: Tensor) -> bool:
    """Whether the module may run its inference kernel."""
    trained = query.requires_grad or any(p.requires_grad for p in module.parameters())
    return not module.training and not (torch.is_grad_enabled() and trained)


def projected(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """q, k and v of a module's inputs, (B, H, tokens, D)."""
    inputs = [query, key, value]
    if module.batch_first:
        alike = query is key is value
        inputs = [query.transpose(0, 1)] * 3 if alike else [x.transpose(0, 1) for x in inputs]
    weight = _checked(module.in_proj_weight, module.bias_k, module.add_zero_attn)
    return _heads(_projected(inputs[0], inputs[1], inputs[2], weight, module.in_proj_bias), module.num_heads)


def run_function(
    func: Callable[..., Any],
    attend: Attend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """`F.multi_head_attention_forward` with its attention in the open; inputs are (tokens, B, width)."""
    if key_padding_mask is not None or attn_mask is not None or kwargs.get("is_causal"):
        raise UserError("MultiheadAttention with masks is not supported")
    weight = _checked(in_proj_weight, bias_k, add_zero_attn)
    q, k, v = _heads(_projected(query, key, value, weight, in_proj_bias), num_heads)
    dropout = dropout_p if training else 0.0
    replaced = attend(q, k, v, dropout)
    if replaced is None and need_weights:  # the function forms the maps itself
        arguments = (embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v, add_zero_attn)
        more = {"training": training, "need_weights": True, **kwargs}
        return func(query, key, value, *arguments, dropout_p, out_proj_weight, out_proj_bias, **more)
    attended = F.scaled_dot_product_attention(q, k, v, None, dropout) if replaced is None else replaced[0]
    tokens, batch, width = query.shape
    joined = attended.permute(2, 0, 1, 3).contiguous().view(batch * tokens, width)
    output = F.linear(joined, out_proj_weight, out_proj_bias).view(tokens, batch, width)
    if replaced is None or not need_weights:
        return output, None
    maps = replaced[1].maps()
    return output, maps.mean(dim=1) if kwargs.get("average_attn_weights", True) else maps


def _projected(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    """Queries, keys and values by one weight of all three, in as few products as the function itself makes."""
    width = weight.shape[1]
    if query is key is value:
        stacked = F.linear(query, weight, bias).unflatten(-1, (3, width)).movedim(-2, 0).contiguous()
        return list(stacked.unbind())
    if key is value:
        q_bias, kv_bias = (None, None) if bias is None else bias.split([width, 2 * width])
        q_weight, kv_weight = weight.split([width, 2 * width])
        stacked = F.linear(key, kv_weight, kv_bias).unflatten(-1, (2, width)).movedim(-2, 0).contiguous()
        return [F.linear(query, q_weight, q_bias), *stacked.unbind()]
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return [F.linear(x, w, b) for x, w, b in zip((query, key, value), weight.chunk(3), biases, strict=True)]


def _heads(parts: list[Tensor], heads: int) -> list[Tensor]:
    tokens_first = [x.view(x.shape[0], x.shape[1] * heads, -1).transpose(0, 1) for x in parts]
    return [x.view(-1, heads, x.shape[1], x.shape[2]) for x in tokens_first]


def _checked(in_proj_weight: Tensor | None, bias_k: Tensor | None, add_zero_attn: bool) -> Tensor:
    if in_proj_weight is None or bias_k is not None or add_zero_attn:
        raise UserError("MultiheadAttention with extra keys or other widths of keys and values is not supported")
    return in_proj_weight
