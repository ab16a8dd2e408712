"""Losses and attention a tile of query rows at a time: no map of N×M is ever stored.

In the backward pass a tile is computed again, so that between the passes only the operands are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attention_transfer.attention.operands import AttentionCall, tile_rows

Compute = Callable[[AttentionCall, AttentionCall], tuple[Tensor, ...]]


def in_tiles(compute: Compute, s: AttentionCall, t: AttentionCall) -> tuple[Tensor, ...]:
    """Run `compute` on tiles of query rows and join its results along the rows (dimension 2).

    Args:
        compute: gives tensors (B, H, rows, …) from the two sides.
        s: the student's side.
        t: the teacher's side.

    Returns:
        The same tensors for all rows.
    """
    rows = s.q.shape[2]
    size = tile_rows(s.q, s.k)
    parts = []
    for start in range(0, max(1, rows), size):
        sides = s.rows(slice(start, start + size)), t.rows(slice(start, start + size))
        parts.append(_recomputed(compute, *sides) if torch.is_grad_enabled() else compute(*sides))
    return tuple(torch.cat(results, dim=2) for results in zip(*parts, strict=True))


def _recomputed(compute: Compute, s: AttentionCall, t: AttentionCall) -> tuple[Tensor, ...]:
    def run(
        q_s: Tensor, k_s: Tensor, mask_s: Tensor | None, q_t: Tensor, k_t: Tensor, mask_t: Tensor | None
    ) -> tuple[Tensor, ...]:
        return compute(replace(s, q=q_s, k=k_s, mask=mask_s), replace(t, q=q_t, k=k_t, mask=mask_t))

    result: tuple[Tensor, ...] = checkpoint(
        run, s.q, s.k, s.mask, t.q, t.k, t.mask, use_reentrant=False, preserve_rng_state=False
    )
    return result
