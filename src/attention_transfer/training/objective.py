"""What the engine trains: any module whose forward of images and targets gives named losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.config.mixing import Mixing
from attention_transfer.training.mixing import Mixed, MixedLoss, mix
from attention_transfer.transfer import AttentionTransfer
from attention_transfer.vit import Pairing


class StepOutput(Protocol):
    """The result of one batch."""

    @property
    def loss(self) -> Tensor:
        """What is minimised, a scalar."""

    @property
    def losses(self) -> Mapping[str, Tensor]:
        """Each term by name, for the log."""

    @property
    def logits(self) -> Tensor | None:
        """Class logits, (B, classes), where the objective has them."""


class Objective(Protocol):
    """A module that the engine can train."""

    @property
    def vit(self) -> nn.Module:
        """The vision transformer that is trained and kept."""

    def __call__(self, images: Tensor, targets: Tensor) -> StepOutput:
        """The losses of one batch."""


@dataclass(frozen=True)
class SupervisedOutput:
    """Losses and logits of one labelled batch."""

    loss: Tensor
    losses: dict[str, Tensor]
    logits: Tensor


torch.utils._pytree.register_dataclass(SupervisedOutput)  # fully_shard looks for tensors in outputs


class Supervised(nn.Module):
    """Cross-entropy with the labels, plus the losses of the rules.

    Args:
        transfer: the student, bound to its teacher.
        label_smoothing: share of each label that is spread over all classes, in training.
        mixing: how batches are mixed, in training.
        frozen_rows: rows of weights that are not trained.
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
        self._mixed: MixedLoss | None = None
        if mixing is not None and mixing.on:
            self._mixed = MixedLoss(transfer, mixing, label_smoothing=label_smoothing)

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
        """The teacher's head of each of a layer's of the student, (H_s,), where they are matched; -1: not yet."""
        pairs = self.transfer.head_pairs
        return None if pairs is None else pairs.of(layer)

    @torch.no_grad()
    def run_student(self, images: Tensor) -> None:
        """Run the student with its rules on images (B, channels, height, width), for who captures its attention.

        Without gradients, so that nothing is logged: a training may compute its losses in other ways.
        """
        targets = torch.zeros(len(images), dtype=torch.long, device=images.device)
        # With the hooks of this module, one of which may put weights together, but not compiled.
        self._call_impl(images, targets)  # type: ignore[no-untyped-call]

    def unused_rows(self) -> list[tuple[nn.Parameter, slice]]:
        """Rows of weights that no forward uses, which must not decay."""
        return [*self.transfer.unused_rows(), *self._frozen_rows]

    def needs_whole(self) -> list[str]:
        """Why the weights can't be cut into shares for several devices, a sentence each."""
        reading = [type(rule).__name__ for rule in self.transfer.rules if getattr(rule, "reads_start", False)]
        found = [f"{name} compares the weights as a whole, which strategy fsdp cuts; choose ddp" for name in reading]
        if self._frozen_rows:
            found.append(
                "trained leaves rows of fused projections as they are, but strategy fsdp cuts projections by rows; "
                "choose ddp, or other parts"
            )
        return found

    def advance(self, progress: float) -> None:
        """Say which share of the training is done; the weights of rules may depend on it."""
        self.transfer.progress = progress

    def cut(self, images: Tensor, targets: Tensor, size: int) -> list[tuple[Tensor, Tensor | Mixed]]:
        """A training batch in micro-batches of so many images; it is mixed before, as a whole."""
        if self._mixed is None:
            return list(zip(images.split(size), targets.split(size), strict=True))
        return [(part.images, part) for part in mix(images, targets, self._mixed.mixing).split(size)]

    def forward(self, images: Tensor, targets: Tensor | Mixed) -> SupervisedOutput:
        """Losses of images (B, channels, height, width) with classes (B,), or of mixed ones.

        Labels are smoothed and batches are mixed in training only.
        """
        if self.training and self._mixed is not None:
            mixed = targets if isinstance(targets, Mixed) else mix(images, targets, self._mixed.mixing)
            output, task = self._mixed.of(mixed)
            return SupervisedOutput(output.total(task), {"task": task, **output.losses}, output.logits)
        output = self.transfer(images)
        if isinstance(targets, Mixed):
            raise TypeError("mixed images are for training; call train() first")
        smoothing = self.label_smoothing if self.training else 0.0
        task = F.cross_entropy(output.logits, targets, label_smoothing=smoothing)
        return SupervisedOutput(output.total(task), {"task": task, **output.losses}, output.logits)
