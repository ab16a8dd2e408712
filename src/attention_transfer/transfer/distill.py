"""Attention Distillation: learn to attend where the teacher attends (Li et al. 2024, arXiv 2411.09702, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attention_transfer.attention import attention_cross_entropy
from attention_transfer.transfer.rule import LossRule, take_heads
from attention_transfer.vit import AttentionCall


@dataclass(frozen=True, kw_only=True)
class Distill(LossRule):
    """Cross-entropy between the teacher's attention maps and the student's.

    Per block the mean over images, heads and query rows (the class token's and all others), summed over blocks; the
    paper's weight is 3. The teacher is not needed after training.

    Attributes:
        weight: factor on the loss.
        layers: blocks that distil; default all (the paper takes the first 18 of 24 of ViT-L).
        heads: heads that distil; default all.
    """

    weight: float = 3.0

    def layer_loss(self, student: AttentionCall, teacher: AttentionCall) -> Tensor:
        """Mean cross-entropy of the maps in nats, a scalar."""
        heads = self.chosen_heads(student.q.shape[1])
        s, t = take_heads(student, heads), take_heads(teacher, heads)
        return attention_cross_entropy(
            s.q, s.k, t.q, t.k, scale_s=s.scale, scale_t=t.scale, mask_s=s.mask, mask_t=t.mask
        ).mean()
