"""The operands of one attention, in one record, and what can be computed from them.

Shapes: B batch, H heads, N query tokens, M key tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from attention_transfer.attention.maps import attention_logits, attention_maps
from attention_transfer.errors import UserError

POOL = -1
"""The layer of an attention-pool head's call (SigLIP, PE); blocks are counted from 0."""

Query = Literal["class", "mean", "pool"]
"""Whose attention stands for the image: the class token's, the mean over the patches', or the attention-pool head's."""

_TILE = {"cpu": 1 << 20}  # elements of a tile's logits: 4 MiB, which stay in a core's cache
_TILE_ELSEWHERE = 1 << 24


@dataclass(frozen=True)
class Tokens:
    """The kinds of tokens in a sequence: prefix tokens, then patches row by row, then suffix tokens.

    Attributes:
        prefix: kinds of the tokens before the patches: "class" (always first), "distillation", "register".
        suffix: number of tokens after the patches (the detection tokens of YOLOS).
    """

    prefix: tuple[str, ...] = ("class",)
    suffix: int = 0

    @property
    def class_token(self) -> bool:
        """Whether token 0 is a class token."""
        return "class" in self.prefix

    def __str__(self) -> str:
        """Kinds and numbers, e.g. "class, 4 × register"."""
        kinds = (*self.prefix, *("detection",) * self.suffix)
        names = [f"{kinds.count(k)} × {k}" if kinds.count(k) > 1 else k for k in dict.fromkeys(kinds)]
        return ", ".join(names) or "none"

    def patches(self, total: int) -> slice:
        """Where the patches are in a sequence of `total` tokens."""
        return slice(len(self.prefix), total - self.suffix)


_TOKENS = Tokens()  # Dynamo can't trace that one is made


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """The operands of one block's attention. Nothing is computed until it is asked for.

    Attributes:
        q: queries, (B, H, N, D), as they enter the product: after q/k norm and position rotation.
        k: keys, (B, H, N, D).
        v: values, (B, H, N, D).
        mask: additive or boolean mask or bias, broadcastable to (B, H, N, N), or `None`.
        scale: factor on q·kᵀ.
        layer: index of the block, from 0; -1 for the attention-pool head.
        tokens: what the keys are tokens of.
        dropout: probability that an attention weight is dropped in training.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float
    layer: int
    tokens: Tokens = field(default_factory=Tokens)  # another default Dynamo of torch 2.11 can't trace
    dropout: float = 0.0

    @classmethod
    def of(
        cls, q: Tensor, k: Tensor, scale: float | None = None, mask: Tensor | None = None, *, v: Tensor | None = None
    ) -> AttentionCall:
        """Loose operands as a record; the scale is D^-0.5 by default, and keys stand in where no values are read."""
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        return cls(q, k, k if v is None else v, mask, factor, layer=0, tokens=_TOKENS)

    def logits(self) -> Tensor:
        """Attention logits, (B, H, N, N)."""
        return attention_logits(self.q, self.k, scale=self.scale, mask=self.mask)

    def maps(self) -> Tensor:
        """Attention maps, (B, H, N, N); rows sum to one."""
        return attention_maps(self.q, self.k, scale=self.scale, mask=self.mask)

    def wide_logits(self) -> Tensor:
        """Attention logits, (B, H, N, N), in float32 or wider: half precision is too coarse for what follows."""
        if self.holds_logits:
            assert self.mask is not None
            return self.mask
        wide = torch.promote_types(self.q.dtype, torch.float32)
        if self.q.shape[-2] != 1:
            with torch.autocast(self.q.device.type, enabled=False):
                return attention_logits(self.q.to(wide), self.k.to(wide), scale=self.scale, mask=self.mask)
        # Autocast changes none of these products.
        row_BH1M: Tensor = _RowLogits.apply(self.q.to(wide) * self.scale, self.k)
        if self.mask is None:
            return row_BH1M
        if self.mask.dtype == torch.bool:
            return row_BH1M.masked_fill(~self.mask, float("-inf"))
        return row_BH1M + self.mask

    def rows(self, rows: slice | Tensor) -> AttentionCall:
        """The call with some of its queries, by a slice or by their indices."""
        mask = self.mask
        if mask is not None and mask.dim() > 1 and mask.shape[-2] > 1:
            mask = mask[..., rows, :]
        return replace(self, q=self.q[..., rows, :], mask=mask)

    def heads(self, heads: Sequence[int] | Tensor) -> AttentionCall:
        """The call with the named heads, in this order."""
        index = heads if isinstance(heads, Tensor) else list(heads)
        mask = self.mask
        if mask is not None and mask.dim() > 2 and mask.shape[-3] > 1:
            mask = mask[..., index, :, :]
        return replace(self, q=self.q[:, index], k=self.k[:, index], v=self.v[:, index], mask=mask)

    def same_operands(self, other: AttentionCall) -> bool:
        """Whether the other call has this one's very tensors and scale."""
        tensors = ((self.q, other.q), (self.k, other.k), (self.v, other.v), (self.mask, other.mask))
        return all(a is b for a, b in tensors) and self.scale == other.scale

    def class_logits(self, *, query: Query = "class") -> Tensor:
        """The row of the logits that stands for the image, (B, H, N); `query_row` says which there are."""
        return self.query_row(query).logits().squeeze(-2)

    def query_row(self, query: Query = "class") -> AttentionCall:
        """The call with one query in the place of all: q is (B, H, 1, D), at O(N·D) instead of O(N²·D).

        Args:
            query: "class" is the class token's row; "mean" the mean of the patches' rows of logits (exact, as
                the product is linear in the query); "pool" the row of the attention-pool head, which must be that call.

        Raises:
            UserError: this call has no such row.
        """
        if query == "pool" or self.layer == POOL:
            if query != "pool" or self.layer != POOL or self.q.shape[-2] != 1:
                where = "the attention-pool head" if self.layer == POOL else f"block {self.layer}"
                raise UserError(f'{where} has no row for query="{query}"')
            return self
        if query == "class":
            if not self.tokens.class_token:
                raise UserError('there is no class token; choose query="mean", or "pool" where there is a pooling head')
            return self.rows(slice(0, 1))
        patches = self.rows(self.tokens.patches(self.q.shape[-2]))
        mask = patches.mask
        if mask is not None and mask.dim() > 1 and mask.shape[-2] > 1:
            if mask.dtype == torch.bool:
                raise UserError('query="mean" is not defined where rows are masked differently; choose another query')
            mask = mask.mean(dim=-2, keepdim=True)
        return replace(patches, q=patches.q.mean(dim=-2, keepdim=True), mask=mask)

    def as_logits(self) -> AttentionCall:
        """A call with these logits, in float32 or wider, and nothing else: a bias of queries and keys of width 0.

        Nothing of the model's tensors is kept alive by it.
        """
        return self.of_logits(self.wide_logits(), like=self)

    @staticmethod
    def of_logits(logits_BHNM: Tensor, *, like: AttentionCall) -> AttentionCall:
        """A call that `as_logits` could have given, of whatever logits; the rest is that of another call."""
        q_BHN0 = like.q.new_empty(*logits_BHNM.shape[:3], 0)
        k_BHM0 = like.k.new_empty(*logits_BHNM.shape[:2], logits_BHNM.shape[3], 0)
        return replace(like, q=q_BHN0, k=k_BHM0, v=k_BHM0, mask=logits_BHNM, scale=1.0)

    @property
    def holds_logits(self) -> bool:
        """Whether `as_logits` gave this call, so that its mask is its logits."""
        shape = (*self.q.shape[:-1], self.k.shape[-2])
        return (
            self.q.shape[-1] == 0
            and self.mask is not None
            and self.mask.is_floating_point()
            and self.mask.shape == shape
        )


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


def under_autocast(*operands: Tensor) -> tuple[Tensor, ...]:
    """The operands in autocast's dtype, where it is on, as PyTorch's own attention takes them; float64 stays."""
    device = operands[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return operands
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in operands)


def tile_rows(q: Tensor, k: Tensor) -> int:
    """How many query rows make a tile, from the shapes and the device."""
    elements = _TILE.get(q.device.type, _TILE_ELSEWHERE)
    return max(16, min(q.shape[2], elements // max(1, q.shape[0] * q.shape[1] * k.shape[2])))
