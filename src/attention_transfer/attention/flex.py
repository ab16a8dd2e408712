"""PyTorch's FlexAttention as the kernel of the fused losses: its log-sum-exp can be differentiated as it is.

On CUDA it is compiled to a Triton kernel for each shape; elsewhere it runs unfused, and forms the maps.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


def obstacle(q_BHND: Tensor, k_BHMD: Tensor) -> str | None:
    """Why FlexAttention can't serve queries and keys without forming maps, or `None`."""
    if not q_BHND.is_cuda:
        return f"FlexAttention is fused on CUDA, not on {q_BHND.device.type}"
    if q_BHND.dtype == torch.float64:
        return "FlexAttention takes no float64 on CUDA"
    if not (q_BHND.numel() and k_BHMD.numel()):
        return "there are no queries, keys or heads"
    return None


def attend(q_BHND: Tensor, k_BHMD: Tensor, v_BHME: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its logits, both differentiable in q, k and v.

    Returns:
        The output, (B, H, N, E), and the log-sum-exp in float32 or wider, (B, H, N).
    """
    return _run(q_BHND, k_BHMD, v_BHME, None, scale)


def averaged(
    q_BHND: Tensor, k_BHMD: Tensor, x_BHME: Tensor, *, scale: float, key_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`P x` and the log-sum-exps of P's logits, without gradients; see `fused.averaged`."""
    with torch.no_grad():
        return _run(q_BHND, k_BHMD, x_BHME, key_bias, scale)


def _run(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    # A call inside a graph that is being compiled becomes part of it.
    run = _compiled() if q.is_cuda and not torch.compiler.is_compiling() else _attend
    out, lse = run(q, k, v, key_bias, scale)
    return out, lse


@cache
def _compiled() -> Any:
    return torch.compile(_attend, fullgraph=True)


def _attend(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention  # loads the compiler

    def add(logit: Tensor, image: Tensor, head: Tensor, _: Tensor, key: Tensor) -> Tensor:
        assert key_bias is not None
        return logit + key_bias[image, head, key]

    modify = None if key_bias is None else add
    out, aux = flex_attention(q, k, v, modify, scale=scale, return_aux=AuxRequest(lse=True))
    assert aux.lse is not None
    return out, aux.lse
