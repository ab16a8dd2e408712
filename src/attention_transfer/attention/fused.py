"""PyTorch's fused attention with its log-sum-exp, forward and backward, on the CPU and on CUDA.

`F.scaled_dot_product_attention` computes the log-sum-exp of every row and throws it away. The operators below it return
it, and their backward passes take an output of our choice. Which operator serves:

| device | dtype | operator |
|---|---|---|
| CPU | any floating | `_scaled_dot_product_flash_attention_for_cpu` |
| CUDA | float16, bfloat16 | `_scaled_dot_product_flash_attention` |
| CUDA | float32 | `_scaled_dot_product_efficient_attention` |

None of them takes a mask here. Shapes: B batch, H heads, N query tokens, M key tokens, D head dimension.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_aten = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)
_MULTIPLE = 8  # head dimensions that all kernels serve without a detour
_WIDEST = 248  # the operators' 256, less the columns of a bias


class Attended(NamedTuple):
    """What a forward pass leaves.

    Attributes:
        out: (B, H, N, D), in the dtype of the operands.
        lse: log-sum-exps of the logits, (B, H, N), float32 or wider.
        extras: what the backward operator of that device needs beside them.
    """

    out: Tensor
    lse: Tensor
    extras: tuple[Tensor, ...] = ()


def obstacle(q_BHND: Tensor, k_BHMD: Tensor) -> str | None:
    """Why the operators can't serve queries and keys, or `None`."""
    device, dtype = q_BHND.device.type, q_BHND.dtype
    if device not in ("cpu", "cuda"):
        return f"PyTorch's fused attention gives no log-sum-exp on {device}"
    if not all(x.shape[-2] and x.shape[-1] and x.shape[-3] for x in (q_BHND, k_BHMD)):
        return "there are no queries, keys or heads"  # the operators divide by their number
    if device == "cuda" and dtype not in (*_HALF, torch.float32):
        return f"PyTorch's fused attention takes no {str(dtype).removeprefix('torch.')} on CUDA"
    if device == "cuda" and dtype in _HALF:
        from attention_transfer.attention import gpu  # loads the compiler

        if gpu.before_ampere():
            return "PyTorch's flash attention wants a GPU of the Ampere generation or later"
    if device == "cuda" and max(q_BHND.shape[-1], k_BHMD.shape[-1]) > _WIDEST:
        return f"a head dimension is over {_WIDEST}"
    return None


def widened(*operands: Tensor) -> list[Tensor]:
    """Operands with a dense last dimension, padded with zeros to one width that the operators serve."""
    width = max(x.shape[-1] for x in operands)
    if operands[0].is_cuda:
        width += -width % _MULTIPLE
    dense = [x if x.stride(-1) == 1 else x.contiguous() for x in operands]
    return [x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in dense]


def forward(q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor, *, scale: float) -> Attended:
    """Attention of operands that `widened` has prepared."""
    if not q_BHND.is_cuda:
        return Attended(*_aten._scaled_dot_product_flash_attention_for_cpu(q_BHND, k_BHMD, v_BHMD, scale=scale))
    if q_BHND.dtype in _HALF:
        results = _aten._scaled_dot_product_flash_attention(q_BHND, k_BHMD, v_BHMD, scale=scale)
        out, lse, _, _, _, _, seed, offset, _ = results
        return Attended(out, lse, (seed, offset))
    out, lse, seed, offset = _aten._scaled_dot_product_efficient_attention(
        q_BHND, k_BHMD, v_BHMD, None, compute_log_sumexp=True, scale=scale
    )
    return Attended(out, lse[..., : q_BHND.shape[-2]], (lse, seed, offset))  # its rows are padded to whole tiles


def backward(
    d_out_BHND: Tensor, q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor, attended: Attended, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v: `dS = P ∘ (dO Vᵀ - δ)` with `δ_i = Σ dO_i · O_i`, whatever O is given."""
    operands = (d_out_BHND, q_BHND, k_BHMD, v_BHMD)
    out, lse, extras = attended
    if not q_BHND.is_cuda:
        d_q, d_k, d_v = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *operands, out, lse, 0.0, False, scale=scale
        )
    elif q_BHND.dtype in _HALF:
        tokens = q_BHND.shape[-2], k_BHMD.shape[-2]
        d_q, d_k, d_v = _aten._scaled_dot_product_flash_attention_backward(
            *operands, out, lse, None, None, *tokens, 0.0, False, *extras, scale=scale
        )
    else:
        whole_lse, *random = extras
        d_q, d_k, d_v, _ = _aten._scaled_dot_product_efficient_attention_backward(
            *operands, None, out, whole_lse, *random, 0.0, [True, True, True, False], scale=scale
        )
    return d_q, d_k, d_v


def averaged(
    q_BHND: Tensor, k_BHMD: Tensor, x_BHME: Tensor, *, scale: float, key_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`P x` and the log-sum-exps of P's logits, without gradients.

    Args:
        q_BHND: queries.
        k_BHMD: keys.
        x_BHME: what is averaged, in the dtype of queries and keys.
        scale: factor on q·kᵀ, not 0.
        key_bias: a number that is added to all logits of a key, (B, H, M), float32 or wider.

    Returns:
        (B, H, N, E), and (B, H, N) in float32 or wider.
    """
    if key_bias is not None:
        q_BHND, k_BHMD = _with_bias(q_BHND, k_BHMD, key_bias, scale)
    out, lse, _ = forward(*widened(q_BHND, k_BHMD, x_BHME), scale=scale)
    return out[..., : x_BHME.shape[-1]], lse


def _with_bias(q_BHND: Tensor, k_BHMD: Tensor, bias_BHM: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Queries and keys with further columns, whose product is the bias: the operators are twice as fast without one.

    In half precision the bias is a sum of three columns, so that it keeps float32's digits.
    """
    dtype = q_BHND.dtype
    unit = 2.0 ** -math.frexp(scale)[1]  # about 1 / |scale|; a power of two, so that its products are exact
    rest = bias_BHM / (scale * unit)
    columns = []
    for _ in range(3 if dtype in _HALF else 1):
        columns.append(rest.to(dtype))
        rest = rest - columns[-1]
    units = q_BHND.new_full((*q_BHND.shape[:-1], len(columns)), unit)
    return torch.cat([q_BHND, units], dim=-1), torch.cat([k_BHMD, torch.stack(columns, dim=-1)], dim=-1)
