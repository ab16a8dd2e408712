"""The seam of `torch.nn.MultiheadAttention` (torchvision's ViTs, the pooling head of Hugging Face's SigLIP).

Its attention runs inside one function, `F.multi_head_attention_forward`, or inside one fused kernel (the fast path of
inference), where no mode can look. So q, k and v are projected here, as that function does, and given to the listener.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.errors import UserError
from attention_transfer.vit.call import AttentionCall
from attention_transfer.vit.tokens import Tokens


def run_multihead(
    module: nn.MultiheadAttention,
    layer: int,
    tokens: Tokens,
    listener: Callable[[AttentionCall], AttentionCall | Tensor],
    forward: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """Run the module with a listener at its attention.

    Where the module would use its inference kernel or form its maps (`need_weights`), it runs as it is, and q, k and v
    are projected a second time for the listener; otherwise they are projected once, here.
    """
    if key_padding_mask is not None or attn_mask is not None or kwargs.get("is_causal"):
        raise UserError("MultiheadAttention with masks is not supported")
    if not module._qkv_same_embed_dim or module.bias_k is not None or module.add_zero_attn:
        raise UserError("MultiheadAttention with extra keys or other widths of keys and values is not supported")
    q_BHND, k_BHMD, v_BHMD = _projected(module, query, key, value)
    dropout = module.dropout if module.training else 0.0
    seen = AttentionCall(q_BHND, k_BHMD, v_BHMD, None, module.head_dim**-0.5, layer, tokens, dropout)
    used = listener(seen)
    if isinstance(used, Tensor):
        attended_BHND = used
    else:
        replaced = not (used.q is seen.q and used.k is seen.k and used.v is seen.v and used.mask is None)
        if not replaced and (need_weights or not (module.training or torch.is_grad_enabled())):
            return forward(query, key, value, need_weights=need_weights, **kwargs)
        attended_BHND = F.scaled_dot_product_attention(used.q, used.k, used.v, used.mask, dropout, scale=used.scale)
    output = _merged(module, attended_BHND)
    return (output if module.batch_first else output.transpose(0, 1)), None


def _projected(module: nn.MultiheadAttention, *inputs: Tensor) -> list[Tensor]:
    """q, k and v, (B, H, tokens, D)."""
    weights = module.in_proj_weight.chunk(3)
    biases = module.in_proj_bias.chunk(3) if module.in_proj_bias is not None else (None,) * 3
    batched = inputs if module.batch_first else [x.transpose(0, 1) for x in inputs]
    if batched[0] is batched[1] is batched[2]:
        parts = F.linear(batched[0], module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
    else:
        parts = tuple(F.linear(x, w, b) for x, w, b in zip(batched, weights, biases, strict=True))
    return [x.unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2) for x in parts]


def _merged(module: nn.MultiheadAttention, attended_BHND: Tensor) -> Tensor:
    return cast(Tensor, module.out_proj(attended_BHND.transpose(1, 2).flatten(2)))
