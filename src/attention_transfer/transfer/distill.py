"""Attention Distillation: learn to attend where the teacher attends (Li et al. 2024, arXiv 2411.09702, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from attention_transfer.attention import Choice, Impl, attention_cross_entropy, choose_impl, distilled_attention
from attention_transfer.transfer.rule import LossRule, check_heads, take_heads
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
        impl: how the cross-entropy is computed; see `choose_impl`. Every way gives the same.
    """

    weight: float = 3.0
    target: Literal["map", "q", "k", "v"] = "map"
    impl: Impl = "auto"

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

    def attend(self, student: AttentionCall, teacher: AttentionCall) -> tuple[Tensor, Tensor] | None:
        """By fused kernels, where they serve the block and all its heads are distilled."""
        if not self._in_one(student, teacher):
            return None
        return distilled_attention(
            student.q,
            student.k,
            student.v,
            teacher.q,
            teacher.k,
            scale_s=student.scale,
            scale_t=teacher.scale,
            mask_s=student.mask,
            mask_t=teacher.mask,
            impl=self.impl,
            reduction="mean",
        )

    def how(self, student: AttentionCall, teacher: AttentionCall) -> str:
        """The implementation, and why it was chosen."""
        if self.target != "map":
            return ""
        if self._in_one(student, teacher):
            return f"attention and loss in one, {self._choice(student, teacher, in_one=True)}"
        return str(self._choice(student, teacher))

    def _in_one(self, student: AttentionCall, teacher: AttentionCall) -> bool:
        plain = self.target == "map" and student.dropout == 0 and student.q.requires_grad
        whole = len(self.chosen_heads(student.q.shape[1])) == student.q.shape[1]
        fused = ("flash", "triton")
        return plain and whole and self._choice(student, teacher, in_one=True).impl in fused

    def _choice(self, student: AttentionCall, teacher: AttentionCall, *, in_one: bool = False) -> Choice:
        return choose_impl(
            "distilled_attention" if in_one else "attention_cross_entropy",
            student.q,
            student.k,
            teacher.q,
            teacher.k,
            v_s=student.v if in_one else None,
            scale_s=student.scale,
            scale_t=teacher.scale,
            mask_s=student.mask,
            mask_t=teacher.mask,
            impl=self.impl,
        )

    def layer_loss(self, student: AttentionCall, teacher: AttentionCall) -> Tensor:
        """Mean cross-entropy of the maps in nats, or mean squared distance of the operands, a scalar."""
        check_heads(student, teacher)
        heads = self.chosen_heads(student.q.shape[1])
        s, t = take_heads(student, heads), take_heads(teacher, heads)
        if self.target != "map":
            return F.mse_loss(getattr(s, self.target), getattr(t, self.target))
        return attention_cross_entropy(
            s.q, s.k, t.q, t.k, scale_s=s.scale, scale_t=t.scale, mask_s=s.mask, mask_t=t.mask, impl=self.impl
        ).mean()
