"""Cross-entropy with the labels, plus the losses of the rules that bind a student to its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.config.mixing import Mixing
from attention_transfer.errors import raise_all
from attention_transfer.objectives.base import Images, Objective, ObjectiveOutput, Watch
from attention_transfer.objectives.mixing import MixedTargets, TransMixWeight, mixed_cross_entropy
from attention_transfer.objectives.watch import WatchAttention
from attention_transfer.transfer import AttentionTransfer
from attention_transfer.vit import Pairing


class Supervised(Objective):
    """Cross-entropy with the labels, plus the losses of the rules.

    Args:
        transfer: the student, bound to its teacher.
        label_smoothing: share of each label that is spread over all classes, in training.
        mixing: how batches are mixed, in training.
        frozen_rows: rows of weights that are not trained.

    Raises:
        UserError: the settings of mixing are wrong, or the attention that they name is not there.
    """

    def __init__(
        self,
        transfer: AttentionTransfer,
        *,
        label_smoothing: float = 0.0,
        mixing: Mixing | None = None,
        frozen_rows: Sequence[tuple[nn.Parameter, slice]] = (),
    ) -> None:
        super().__init__()
        self.transfer = transfer
        self.label_smoothing = label_smoothing
        self._frozen_rows = list(frozen_rows)
        self._transmix: TransMixWeight | None = None
        if mixing is not None:
            raise_all(mixing.problems())
            self.mixing = mixing if mixing.on else None
            if mixing.transmix != "off":
                self._transmix = TransMixWeight(transfer, mixing.transmix)

    @property
    def vit(self) -> nn.Module:
        """The student."""
        return self.transfer.student

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher, or `None` where no rule reads it."""
        return self.transfer.teacher

    @property
    def pairing(self) -> Pairing:
        """How the teacher's layers, heads and tokens are mapped to the student's."""
        return self.transfer.pairing

    def matched_heads(self, layer: int) -> Tensor | None:
        """The teacher's head for each head of the student's layer, (H_s,), if heads are matched; -1: not yet."""
        pairs = self.transfer.head_pairs
        return None if pairs is None else pairs.of(layer)

    @torch.no_grad()
    def run_student(self, images: Tensor) -> None:
        """Run the student with its rules on images (B, channels, height, width), to capture its attention.

        Without gradients nothing is logged, since a training may compute its losses in another way.
        """
        self(images, torch.zeros(len(images), dtype=torch.long, device=images.device))

    def untrained_rows(self) -> list[tuple[nn.Parameter, slice]]:
        """Rows of weights that no forward uses, or that are frozen."""
        return [*self.transfer.unused_rows(), *self._frozen_rows]

    def sharding_problems(self) -> list[str]:
        """Rules that compare whole weights and frozen rows of weights need whole weights on each device."""
        reading = [type(rule).__name__ for rule in self.transfer.rules if getattr(rule, "reads_start", False)]
        found = [f"{name} compares the weights as a whole, which strategy fsdp cuts; choose ddp" for name in reading]
        if self._frozen_rows:
            found.append(
                "trained leaves rows of fused projections as they are, but strategy fsdp cuts projections by rows; "
                "choose ddp, or other parts"
            )
        return found

    def advance(self, progress: float) -> None:
        """The weights of rules may depend on the share of the training that is done."""
        self.transfer.progress = progress

    def watch(self, images: Images, picture: Path | None, *, name: str, batch_size: int) -> Watch:
        """Measure and draw how far the student attends as its teacher does."""
        return WatchAttention(self, images, picture, name=name, batch_size=batch_size)

    def forward(self, images: Tensor, targets: Tensor | MixedTargets) -> ObjectiveOutput:
        """Losses of images (B, channels, height, width) with classes (B,), or with mixed ones.

        Labels are smoothed in training only.
        """
        smoothing = self.label_smoothing if self.training else 0.0
        if not isinstance(targets, MixedTargets):
            output = self.transfer(images)
            task = F.cross_entropy(output.logits, targets, label_smoothing=smoothing)
        elif self._transmix is not None and targets.mask is not None:
            output, weight_B = self._transmix(images, targets.mask)
            task = mixed_cross_entropy(output.logits, targets, weight_B, label_smoothing=smoothing)
        else:
            output = self.transfer(images)
            task = mixed_cross_entropy(output.logits, targets, targets.lam, label_smoothing=smoothing)
        return ObjectiveOutput(output.total(task), {"task": task, **output.losses}, output.logits)
