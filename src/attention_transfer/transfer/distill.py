"""Attention Distillation: learn to attend where the teacher attends (Li et al. 2024, arXiv 2411.09702, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from attention_transfer.attention import (
    FUSED_IMPLS,
    AttentionCall,
    Choice,
    Distance,
    Impl,
    attention_cross_entropy,
    attention_js,
    attention_kl,
    attention_mse,
    choose,
    distilled,
    logit_l2,
    output_l2_between,
)
from attention_transfer.errors import UserError, raise_all
from attention_transfer.transfer.averaging import Average, averaged
from attention_transfer.transfer.rule import LossRule
from attention_transfer.vit import Reading, ViTSpec, wrong_choices

Target = Literal["map", "logits", "q", "k", "v", "output"]
Divergence = Literal["ce", "kl", "js", "mse"]
_DIVERGENCES: dict[Divergence, Distance] = {
    "ce": attention_cross_entropy,
    "kl": attention_kl,
    "js": attention_js,
    "mse": attention_mse,
}


@dataclass(frozen=True, kw_only=True)
class Distill(LossRule):
    """Cross-entropy between the teacher's attention maps and the student's.

    The mean over images, heads, query rows (the class token's and all others) and blocks, so that a weight means the
    same at any depth, number of heads and image size. The teacher is not needed after training.

    Attributes:
        weight: factor on the loss. The paper's is 3 on the sum over 18 blocks, which is 54 on their mean, for 200
            epochs of ImageNet; hundreds of images and steps want less of it. `schedule` and `until` may let it fall.
        layers: blocks that distil; default all (the paper takes the first 18 of 24 of ViT-L: "first 18").
        heads: heads that distil; default all.
        target: "map" (the method); "logits" for the mean squared distance of the attention logits; "q", "k" or "v"
            for that of one operand (the paper's variants); "output" for that of what the heads read, P V, which also
            works where student and teacher attend in different ways (Qin et al. 2026).
        divergence: between maps: "ce" cross-entropy (the method), "kl", "js", or "mse", the sum of squares.
        average: the teacher's maps are averaged over a batch's images, its queries or its heads first (an ablation of
            the paper, which loses most of the gain).
        impl: how the distance is computed; see `choose_impl`. Every way gives the same.
    """

    weight: float = 3.0
    target: Target = "map"
    divergence: Divergence = "ce"
    average: Average | None = None
    impl: Impl = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        raise_all(wrong_choices(self, target=Target, divergence=Divergence, average=Average | None, impl=Impl))
        if self.target != "map" and (self.divergence != "ce" or self.average is not None):
            raise UserError(
                f"Distill.divergence and average are of maps, and target is {self.target!r}; leave them out, or set "
                'target="map"'
            )
        if self.average is not None and (self.heads is not None or self.impl in FUSED_IMPLS):
            raise UserError("Distill.average is of all heads' maps, which are formed; leave heads and impl out")
        if self.target not in ("map", "logits") and self.impl != "auto":
            raise UserError(f"Distill.impl has no effect with target={self.target!r}; leave it out")

    @property
    def reading(self) -> Reading:
        """Maps, logits, or single operands."""
        if self.target == "map":
            return "maps"
        return "logits" if self.target == "logits" else "operands"

    @property
    def reads_values(self) -> bool:
        """Only where the values themselves are compared."""
        return self.target in ("v", "output")

    def problems(self, teacher: ViTSpec, student: ViTSpec) -> list[str]:
        """Single operands are compared as they are, so their head dimensions must agree."""
        found = super().problems(teacher, student)
        if self.reading == "operands" and teacher.head_dim != student.head_dim:
            found.append(
                f"Distill(target={self.target!r}) compares operands of head dimension {teacher.head_dim} (teacher) and "
                f"{student.head_dim} (student); use target='map', or a student of the teacher's width"
            )
        return found

    def attend(self, student: AttentionCall, teacher: AttentionCall) -> tuple[Tensor, Tensor] | None:
        """By fused kernels, where they serve the block and all its heads are distilled."""
        return distilled(student, teacher, impl=self.impl, mean=True) if self._in_one(student, teacher) else None

    def implementation(self, student: AttentionCall, teacher: AttentionCall) -> str:
        """The implementation, and why it was chosen."""
        if self.reading == "operands" or self.average is not None:
            return ""
        if self._in_one(student, teacher):
            return f"attention and loss in one, {self._fused(student, teacher)}"
        return str(choose(self._distance.__name__, student, teacher, impl=self.impl))

    def _in_one(self, student: AttentionCall, teacher: AttentionCall) -> bool:
        paper = self.target == "map" and self.divergence == "ce" and self.average is None
        plain = paper and student.dropout == 0 and student.q.requires_grad and self.binds_all_heads(student.q.shape[1])
        return plain and self._fused(student, teacher).impl in FUSED_IMPLS

    def _fused(self, student: AttentionCall, teacher: AttentionCall) -> Choice:
        return choose("distilled_attention", student, teacher, values=True, impl=self.impl)

    def layer_loss(self, student: AttentionCall, teacher: AttentionCall) -> Tensor:
        """Mean over images, heads and query rows: nats, squared weights, logits or operands; a scalar."""
        s, t = self.take_heads(student, teacher)
        if self.target == "output":
            return output_l2_between(s, t).mean() / s.v.shape[-1]
        if self.reading == "operands":
            return F.mse_loss(getattr(s, self.target), getattr(t, self.target))
        rows_BHN = self._distance.between(s, averaged(t, self.average), impl=self.impl)
        return rows_BHN.mean() / (s.k.shape[-2] if self.target == "logits" else 1)

    @property
    def _distance(self) -> Distance:
        return logit_l2 if self.target == "logits" else _DIVERGENCES[self.divergence]
