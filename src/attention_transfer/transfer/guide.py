"""GTA, Guided Transfer of spatial Attention (Seo et al. 2024, arXiv 2401.02656)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attention_transfer.attention import POOL, AttentionCall, Query, attention_mse, logit_l2
from attention_transfer.errors import UserError, raise_all
from attention_transfer.transfer.rule import CallPair, LossRule
from attention_transfer.vit import Reading, ViTSpec, wrong_choices

Reduction = Literal["mean", "sum"]
Rows = Literal["query", "all"]
On = Literal["logits", "maps"]


@dataclass(frozen=True, kw_only=True)
class Guide(LossRule):
    """Keep the class token's attention logits close to those of the frozen source, while its weights are fine-tuned.

    The squared distance of one row of logits, the mean over keys, images, heads and blocks, so that a weight means the
    same at any depth, number of heads and image size. A row costs O(N·D), so that the rule is almost free.

    Attributes:
        weight: factor on the loss (λ in the paper); the best one depends on the data. `schedule` and `until` may let
            it fall.
        layers: blocks that are guided; default all.
        heads: heads that are guided; default all.
        reduction: over the keys of a row: "mean", or "sum", the plain norm, which grows with the image size.
        query: whose row: "class" (the paper's, the default), "mean" for the mean of the patches' rows, or "pool" for
            the attention-pool head, which is one call and has no layers. Models without a class token (SigLIP, I-JEPA)
            need one of the other two.
        rows: "query", that one row (the paper's), or "all" rows, as an ablation.
        on: "logits" (the paper's), or "maps", the weights after the softmax, as an ablation.
    """

    weight: float = 0.03
    reduction: Reduction = "mean"
    query: Query = "class"
    rows: Rows = "query"
    on: On = "logits"

    def __post_init__(self) -> None:
        super().__post_init__()
        raise_all(wrong_choices(self, reduction=Reduction, query=Query, rows=Rows, on=On))
        if self.rows == "all" and self.query != "class":
            raise UserError('Guide.query has no effect with rows="all"; leave one of the two out')

    @property
    def reading(self) -> Reading:
        """Logits, or maps."""
        return "logits" if self.on == "logits" else "maps"

    @property
    def row(self) -> Query | None:
        """The row that is guided, or `None` for all."""
        return None if self.rows == "all" else self.query

    def chosen_layers(self, depth: int) -> tuple[int, ...]:
        """The guided blocks; the pooling head where that is guided."""
        return (POOL,) if self.query == "pool" else super().chosen_layers(depth)

    def problems(self, teacher: ViTSpec, student: ViTSpec) -> list[str]:
        """The rule needs its query on both sides."""
        found = super().problems(teacher, student)
        if self.query == "pool" and self.layers is not None:
            found.append('Guide(query="pool") guides the pooling head, which has no layers; leave layers out')
        for role, spec in (("teacher", teacher), ("student", student)):
            if self.query == "pool" and not spec.pool:
                found.append(
                    f'Guide(query="pool") needs an attention-pool head, which {role} {spec.name} does not have'
                )
        return found

    def _instead(self, spec: ViTSpec) -> str:
        return '; choose query="mean" or query="pool"' if spec.pool else '; choose query="mean"'

    def loss(self, calls: Sequence[CallPair]) -> Tensor:
        """The mean over layers; rows of one shape are compared in one, since each is little work."""
        logits = [x.mask for pair in calls for x in pair if x.mask is not None and x.holds_logits]
        if len(logits) < 2 * len(calls) or len({x.shape for x in logits}) > 1:
            return super().loss(calls)
        s, t = (
            AttentionCall.of_logits(torch.cat(side), like=call)
            for side, call in zip((logits[::2], logits[1::2]), calls[0], strict=True)
        )
        return self.layer_loss(s, t)

    def layer_loss(self, student: AttentionCall, teacher: AttentionCall) -> Tensor:
        """Mean squared distance of the rows, a scalar."""
        s, t = self.take_heads(student, teacher)
        rows_BHN = (logit_l2 if self.on == "logits" else attention_mse).between(s, t)
        return rows_BHN.mean() / (s.k.shape[-2] if self.reduction == "mean" else 1)
