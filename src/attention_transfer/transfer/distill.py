"""Attention Distillation: learn to attend where the teacher attends (Li et al. 2024, arXiv 2411.09702, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from attention_transfer.attention import attention_cross_entropy
from attention_transfer.transfer.rule import LossRule, take_heads
from attention_transfer.vit import AttentionCall, Reading, ViTSpec


@dataclass(frozen=True, kw_only=True)
class Distill(LossRule):
    """Cross-entropy between the teacher's attention maps and the student's.

    Per block the mean over images, heads and query rows (the class token's and all others), summed over blocks; the
    paper's weight is 3. The teacher is not needed after training.

    Attributes:
        weight: factor on the loss.
        layers: blocks that distil; default all (the paper takes the first 18 of 24 of ViT-L).
        heads: heads that distil; default all.
        target: "map" (the method), or "q", "k" or "v" for the mean squared distance of one operand (the paper's
            variants).
    """

    weight: float = 3.0
    target: Literal["map", "q", "k", "v"] = "map"

    @property
    def reading(self) -> Reading:
        """Maps, or single operands."""
        return "maps" if self.target == "map" else "operands"

    @property
    def reads_values(self) -> bool:
        """Only where the values themselves are the teacher's."""
        return self.target == "v"

    def problems(self, teacher: ViTSpec, student: ViTSpec) -> list[str]:
        """Single operands are compared as they are, so their head dimensions must agree."""
        found = super().problems(teacher, student)
        if self.target != "map" and teacher.head_dim != student.head_dim:
            found.append(
                f"Distill(target={self.target!r}) compares operands of head dimension {teacher.head_dim} (teacher) and "
                f"{student.head_dim} (student); use target='map', or a student of the teacher's width"
            )
        return found

    def layer_loss(self, student: AttentionCall, teacher: AttentionCall) -> Tensor:
        """Mean cross-entropy of the maps in nats, or mean squared distance of the operands, a scalar."""
        heads = self.chosen_heads(student.q.shape[1])
        s, t = take_heads(student, heads), take_heads(teacher, heads)
        if self.target != "map":
            return F.mse_loss(getattr(s, self.target), getattr(t, self.target))
        return attention_cross_entropy(
            s.q, s.k, t.q, t.k, scale_s=s.scale, scale_t=t.scale, mask_s=s.mask, mask_t=t.mask
        ).mean()
