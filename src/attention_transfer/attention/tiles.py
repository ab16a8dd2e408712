"""Losses and attention a tile of query rows at a time: no map of N×M is ever stored.

In the backward pass a tile is computed again, so that between the passes only the operands are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attention_transfer.attention.maps import attention_logits

_TILE = {"cpu": 1 << 20}  # elements of a tile's logits: 4 MiB, which stay in a core's cache
_TILE_ELSEWHERE = 1 << 24


class Side(NamedTuple):
    """The operands of one side: queries (B, H, N, D), keys (B, H, M, D), scale and mask."""

    q: Tensor
    k: Tensor
    scale: float | None
    mask: Tensor | None

    def logits(self) -> Tensor:
        """Attention logits, (B, H, N, M)."""
        return attention_logits(self.q, self.k, scale=self.scale, mask=self.mask)

    def rows(self, start: int, stop: int) -> Side:
        """The same with some of the queries."""
        mask = self.mask
        if mask is not None and mask.dim() > 1 and mask.shape[-2] > 1:
            mask = mask[..., start:stop, :]
        return Side(self.q[..., start:stop, :], self.k, self.scale, mask)


def in_tiles(compute: Callable[[Side, Side], tuple[Tensor, ...]], s: Side, t: Side) -> tuple[Tensor, ...]:
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
    for start in range(0, rows, size):
        sides = s.rows(start, start + size), t.rows(start, start + size)
        if torch.is_grad_enabled():
            parts.append(_recomputed(compute, *sides))
        else:
            parts.append(compute(*sides))
    return tuple(torch.cat(results, dim=2) for results in zip(*parts, strict=True))


def tile_rows(q: Tensor, k: Tensor) -> int:
    """How many query rows make a tile, from the shapes and the device."""
    elements = _TILE.get(q.device.type, _TILE_ELSEWHERE)
    return max(16, min(q.shape[2], elements // max(1, q.shape[0] * q.shape[1] * k.shape[2])))


def _recomputed(compute: Callable[[Side, Side], tuple[Tensor, ...]], s: Side, t: Side) -> tuple[Tensor, ...]:
    def run(
        q_s: Tensor, k_s: Tensor, mask_s: Tensor | None, q_t: Tensor, k_t: Tensor, mask_t: Tensor | None
    ) -> tuple[Tensor, ...]:
        return compute(Side(q_s, k_s, s.scale, mask_s), Side(q_t, k_t, t.scale, mask_t))

    result: tuple[Tensor, ...] = checkpoint(
        run, s.q, s.k, s.mask, t.q, t.k, t.mask, use_reentrant=False, preserve_rng_state=False
    )
    return result
