"""Stochastic depth (drop path) of a ViT's blocks: set its rate, or share its masks between two models.

Attention Transfer drops the same residual branches in teacher and student, so that the teacher's attention belongs to
the network that the student is at that step (Li et al. 2024, released training settings).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.hooks import HookHandle, hook_forward
from attention_transfer.hooks.scope import Forward
from attention_transfer.vit.libraries import library_of, no_drop_path, unwrapped


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Set stochastic depth that grows linearly from 0 at the first block to `rate` at the last, in place.

    Raises:
        UserError: the rate is above 0 and the model (of transformers, torchvision) has no such branches.
    """
    library_of(model).set_drop_path(unwrapped(model), rate)


def check_shared_drop_path(student: nn.Module, teacher: nn.Module) -> None:
    """Raise a `UserError` where two models can't share drop-path masks."""
    if len(_branches(student)) != len(_branches(teacher)):
        raise UserError("drop-path masks can only be shared by teacher and student of the same depth")


class SharedDropPath:
    """Gives the residual branches of two models one set of drop-path masks a step.

    The rates are those of the student's drop-path modules. Where there are no masks, both models behave as before.

    Args:
        student: the model whose rates count.
        teacher: a model of the same depth.
        masks: gives the masks of the step that is running, as drawn by `draw`, or `None` outside any.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, masks: Callable[[], Sequence[Tensor] | None]) -> None:
        check_shared_drop_path(student, teacher)
        self._masks = masks
        self._rates = [library_of(student).drop_path_rate(branch) for branch in _branches(student)]
        self.handles: list[HookHandle] = [
            hook_forward(branch, partial(self._dropped, index))
            for model in (student, teacher)
            for index, branch in enumerate(_branches(model))
        ]

    def draw(self, batch: int, device: torch.device) -> list[Tensor]:
        """Draw the masks of a step: for each branch `batch` values, 0 or 1/(1 - rate)."""
        keep = 1.0 - torch.tensor(self._rates, device=device)[:, None]
        kept = torch.bernoulli(keep.expand(-1, batch))
        return list(kept / keep.clamp_min(torch.finfo(keep.dtype).tiny))

    def _dropped(self, index: int, original: Forward, x_BNC: Tensor) -> Any:
        masks = self._masks()
        return original(x_BNC) if masks is None else x_BNC * masks[index].to(x_BNC.dtype)[:, None, None]


def _branches(model: nn.Module) -> tuple[nn.Module, ...]:
    branches = library_of(model).drop_paths(unwrapped(model))
    if not branches:
        raise no_drop_path(unwrapped(model))
    return branches
