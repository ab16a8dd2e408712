"""Losses and attention a tile of query rows at a time: no map of N×M is ever stored.

In the backward pass a tile is computed again, so that between the passes only the operands are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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
        """Attention logits, (B, H, N, M), in float32 or wider: half precision is too coarse for what follows."""
        wide = torch.promote_types(self.q.dtype, torch.float32)
        with torch.autocast(self.q.device.type, enabled=False):
            if self.q.shape[-2] == 1:
                return self._row(wide)
            return attention_logits(self.q.to(wide), self.k.to(wide), scale=self.scale, mask=self.mask)

    def _row(self, wide: torch.dtype) -> Tensor:
        factor = self.q.shape[-1] ** -0.5 if self.scale is None else self.scale
        row_BH1M: Tensor = _RowLogits.apply(self.q.to(wide) * factor, self.k)
        if self.mask is None:
            return row_BH1M
        if self.mask.dtype == torch.bool:
            return row_BH1M.masked_fill(~self.mask, float("-inf"))
        return row_BH1M + self.mask

    def rows(self, start: int, stop: int) -> Side:
        """The same with some of the queries."""
        mask = self.mask
        if mask is not None and mask.dim() > 1 and mask.shape[-2] > 1:
            mask = mask[..., start:stop, :]
        return Side(self.q[..., start:stop, :], self.k, self.scale, mask)


class _RowLogits(torch.autograd.Function):
    """The inner products of one query, (B, H, 1, D), and all keys, (B, H, M, D), in the dtype of the query.

    It keeps the keys as they are: a matrix product would keep a copy that lies as it likes.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        ctx.save_for_backward(q, k)
        return (q * k).sum(dim=-1)[..., None, :]

    @staticmethod
    def backward(ctx: Any, g_BH1M: Tensor) -> tuple[Tensor, Tensor]:
        q, k = ctx.saved_tensors
        g_BHM1 = g_BH1M.transpose(-2, -1)
        return (g_BHM1 * k).sum(dim=-2, keepdim=True), (g_BHM1 * q).to(k.dtype)


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
    for start in range(0, max(1, rows), size):
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
