"""One attention call: its operands, and what can be computed from them.

Shapes: B batch, H heads, N tokens, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from attention_transfer.attention import Side, attention_logits, attention_maps
from attention_transfer.errors import UserError
from attention_transfer.vit.tokens import Query, Tokens

POOL = -1
"""The layer of an attention-pool head's call (SigLIP, PE); blocks are counted from 0."""


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

    def logits(self) -> Tensor:
        """Attention logits, (B, H, N, N)."""
        return attention_logits(self.q, self.k, scale=self.scale, mask=self.mask)

    def maps(self) -> Tensor:
        """Attention maps, (B, H, N, N); rows sum to one."""
        return attention_maps(self.q, self.k, scale=self.scale, mask=self.mask)

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
                raise UserError(f'{_where(self.layer)} has no row for query="{query}"')
            return self
        if query == "class":
            if not self.tokens.class_token:
                raise UserError('there is no class token; choose query="mean", or "pool" where there is a pooling head')
            rows = slice(0, 1)
            return replace(self, q=self.q[..., rows, :], mask=_rows(self.mask, rows))
        rows = self.tokens.patches(self.q.shape[-2])
        mask = _rows(self.mask, rows)
        if mask is not None and mask.dim() > 1 and mask.shape[-2] > 1:
            if mask.dtype == torch.bool:
                raise UserError('query="mean" is not defined where rows are masked differently; choose another query')
            mask = mask.mean(dim=-2, keepdim=True)
        return replace(self, q=self.q[..., rows, :].mean(dim=-2, keepdim=True), mask=mask)

    def as_logits(self) -> AttentionCall:
        """A call with these logits, in float32 or wider, and nothing else: a bias of queries and keys of width 0.

        Nothing of the model's tensors is kept alive by it.
        """
        logits_BHNM = Side(self.q, self.k, self.scale, self.mask).logits()
        batch, heads, queries, keys = logits_BHNM.shape
        q_BHN0 = self.q.new_empty(batch, heads, queries, 0)
        k_BHM0 = self.k.new_empty(batch, heads, keys, 0)
        return replace(self, q=q_BHN0, k=k_BHM0, v=k_BHM0, mask=logits_BHNM, scale=1.0)


def _rows(mask: Tensor | None, rows: slice) -> Tensor | None:
    return mask[..., rows, :] if mask is not None and mask.dim() > 1 and mask.shape[-2] > 1 else mask


def _where(layer: int) -> str:
    return "the attention-pool head" if layer == POOL else f"block {layer}"
