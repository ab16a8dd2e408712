"""PyTorch's own attention kernels that return the log-sum-exp of the logits, in natural units: q, k, v to (B, H, N)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def kernels(device: str) -> dict[str, Kernel]:
    """Those of a kind of device, by name."""
    if device == "cpu":
        return {"flash for the CPU": _flash_cpu}
    return {"flash": _flash, "memory-efficient": _efficient, "cuDNN": _cudnn}


def _flash_cpu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    lse: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False)[1]
    return lse


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    lse: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False)[1]
    return lse


def _efficient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    lse: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, False)[1]
    return lse


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    lse: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, False, False)[1]
    return lse.squeeze(-1) if lse.dim() == 4 else lse
