"""GTA, Guided Transfer of spatial Attention (Seo et al. 2024, arXiv 2401.02656)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from attention_transfer.attention import class_logit_l2
from attention_transfer.transfer.rule import LossRule, take_heads
from attention_transfer.vit import AttentionCall, ViTSpec


@dataclass(frozen=True, kw_only=True)
class Guide(LossRule):
    """Keep the class token's attention logits close to those of the frozen source, while its weights are fine-tuned.

    Per block the squared L2 distance of the class token's row, averaged over images and heads, summed over blocks.
    A row costs O(N·D), so that the rule is almost free.

    Attributes:
        weight: factor on the loss (λ in the paper); the best one depends on the data.
        layers: blocks that are guided; default all.
        heads: heads that are guided; default all.
        reduction: over the keys of a row: "mean", which does not depend on the image size, or "sum", the plain norm.
    """

    weight: float = 0.1
    reduction: Literal["mean", "sum"] = "mean"

    def problems(self, teacher: ViTSpec, student: ViTSpec) -> list[str]:
        """The rule needs a class token on both sides."""
        found = super().problems(teacher, student)
        found += [
            f"Guide needs a class token, which {role} {spec.name} does not have; choose a model with one, or Distill"
            for role, spec in (("teacher", teacher), ("student", student))
            if not spec.class_token
        ]
        return found

    def layer_loss(self, student: AttentionCall, teacher: AttentionCall) -> Tensor:
        """Mean squared distance of the class token's logits, a scalar."""
        heads = self.chosen_heads(student.q.shape[1])
        s, t = take_heads(student, heads), take_heads(teacher, heads)
        distance_BH = class_logit_l2(s.q, s.k, t.q, t.k, scale_s=s.scale, scale_t=t.scale, mask_s=s.mask, mask_t=t.mask)
        return distance_BH.mean() / (s.k.shape[-2] if self.reduction == "mean" else 1)
