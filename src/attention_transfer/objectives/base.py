"""What the engine trains: a module that turns a batch into named losses. What else the engine asks has a default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn
from torch.utils.data import Dataset

from attention_transfer.config.mixing import Mixing
from attention_transfer.objectives.mixing import MixedTargets

Images = Dataset[tuple[Tensor, ...]]
"""Items of pixels, and a label where there is one."""

Watch = Callable[[nn.Module], dict[str, float]]
"""Looks at the network at a validation, given what prepares pixels for it, and returns values by name for the log."""


class ObjectiveOutput(NamedTuple):
    """The result of one batch. It is a tuple, in which DDP and FSDP find the tensors.

    Attributes:
        loss: what is minimised, a scalar.
        losses: each term by name, a scalar each, for the log.
        logits: class logits, (B, classes), where the objective has them.
    """

    loss: Tensor
    losses: Mapping[str, Tensor]
    logits: Tensor | None = None


class Objective(nn.Module):
    """A module that the engine can train. A subclass defines `vit` and `forward`; all else has a default.

    Attributes:
        mixing: how the engine mixes each training batch before `forward`; `None` leaves batches as they are.
    """

    mixing: Mixing | None = None

    @property
    def vit(self) -> nn.Module:
        """The vision transformer that is trained and kept."""
        raise NotImplementedError

    def forward(self, images: Tensor, targets: Tensor | MixedTargets) -> ObjectiveOutput:
        """The losses of images (B, channels, height, width) with classes (B,), mixed if `mixing` is set."""
        raise NotImplementedError

    def advance(self, progress: float) -> None:
        """Called before each step with the share of the training that is done, in [0, 1]; nothing by default."""

    def untrained_rows(self) -> list[tuple[nn.Parameter, slice]]:
        """Rows of trainable parameters that training must leave as they are, even by decay; none by default."""
        return []

    def sharding_problems(self) -> list[str]:
        """Why the parameters can't be sharded over devices (FSDP), a sentence each; none by default."""
        return []

    def watch(self, images: Images, picture: Path | None, *, name: str, batch_size: int) -> Watch | None:  # noqa: ARG002
        """What the engine calls at each validation, with the weights that are validated; nothing by default.

        Args:
            images: the validation split.
            picture: the file in which the watch may draw; `None` in a process that must not write.
            name: of the run, for the log.
            batch_size: images a forward pass at most.
        """
        return None
