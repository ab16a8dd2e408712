"""Rules on what the networks put out: distillation of logits and of features, the usual baselines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.errors import UserError, raise_all
from attention_transfer.transfer.rule import NetworkRule, Seen, widened
from attention_transfer.vit import Indices, ViTSpec, select, wrong_choices

Kind = Literal["soft", "hard"]


@dataclass(frozen=True, kw_only=True)
class LogitKD(NetworkRule):
    """Knowledge distillation of the class logits, from a teacher that was trained on the same classes.

    "soft": `T² · KL(softmax(z_t / T) ‖ softmax(z_s / T))`, mean over images (Hinton et al. 2015, arXiv 1503.02531).
    "hard": cross-entropy with the teacher's most probable class (DeiT; Touvron et al. 2021, arXiv 2012.12877, eq. 3).

    Attributes:
        kind: "soft" or "hard".
        temperature: T of "soft"; timm's default is 4.
    """

    kind: Kind = "soft"
    temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        raise_all(wrong_choices(self, kind=Kind))
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UserError(f"LogitKD.temperature is {self.temperature}; give a finite number above 0")

    @property
    def reads_teacher_logits(self) -> bool:
        """All that it reads of the teacher."""
        return True

    def problems(self, teacher: ViTSpec, student: ViTSpec) -> list[str]:
        """Both need the same classes."""
        if teacher.classes == student.classes > 0:
            return []
        return [
            f"LogitKD compares class logits, but teacher {teacher.name} has {teacher.classes} and the student "
            f"{student.classes}; take a teacher that was fine-tuned on these classes"
        ]

    def loss(self, seen: Seen, module: nn.Module | None) -> Tensor:  # noqa: ARG002
        """Mean over images, a scalar."""
        assert seen.teacher_logits is not None
        if self.kind == "hard":
            return F.cross_entropy(seen.student_logits, seen.teacher_logits.argmax(dim=-1))
        log_p_s, log_p_t = (
            (widened(logits) / self.temperature).log_softmax(dim=-1)
            for logits in (seen.student_logits, seen.teacher_logits)
        )
        return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True) * self.temperature**2


@dataclass(frozen=True, kw_only=True)
class FeatureKD(NetworkRule):
    """Distillation of the residual stream: what a block puts out, in the place of where it looks.

    Per block the mean squared distance of the student's tokens, through a linear projection that is trained along, to
    the teacher's, which are normalised token by token (layer norm without parameters); the mean over blocks. The
    comparison of Li et al. 2024 (arXiv 2411.09702, section 4), where it is worse than attention.

    Attributes:
        layers: blocks; `None` for all, n for the last n, indices, or words, as for attention rules.
    """

    weight: float = 12.0
    layers: Indices = None

    @property
    def needs_teacher(self) -> bool:
        """It reads the teacher's blocks."""
        return True

    def read_blocks(self, depth: int) -> tuple[int, ...]:
        """The chosen blocks."""
        return select(self.layers, depth, "FeatureKD.layers")

    def problems(self, teacher: ViTSpec, student: ViTSpec) -> list[str]:
        """Tokens are compared one by one."""
        found = []
        try:
            self.read_blocks(student.depth)
        except UserError as error:
            found.append(str(error))
        if (teacher.grid, teacher.tokens) != (student.grid, student.tokens):
            found.append(
                f"FeatureKD compares token by token, but the teacher has a grid of {teacher.grid} with "
                f"{teacher.tokens} and the student {student.grid} with {student.tokens}; take a student of the "
                "teacher's tokens"
            )
        return found

    def module(self, teacher: ViTSpec, student: ViTSpec) -> nn.Module:
        """A projection for each block."""
        layers = self.read_blocks(student.depth)
        return nn.ModuleDict({str(layer): nn.Linear(student.width, teacher.width) for layer in layers})

    def loss(self, seen: Seen, module: nn.Module | None) -> Tensor:
        """Mean over blocks, a scalar."""
        assert isinstance(module, nn.ModuleDict)
        losses = []
        for name, projection in module.items():  # other rules may read other blocks
            known_BNC = widened(seen.teacher_blocks[int(name)])
            target_BNC = F.layer_norm(known_BNC, known_BNC.shape[-1:])
            losses.append(F.mse_loss(widened(projection(seen.student_blocks[int(name)])), target_BNC))
        return torch.stack(losses).mean()
