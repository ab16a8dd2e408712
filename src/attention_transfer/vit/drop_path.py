"""Stochastic depth (drop path) of a ViT's blocks: set its rate, or share its masks between two models.

Attention Transfer drops the same residual branches in teacher and student, so that the teacher's attention belongs to
the network that the student is at that step (Li et al. 2024, released training settings).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.hooks import HookHandle, hook_forward
from attention_transfer.hooks.hook import Forward, Wrapper
from attention_transfer.vit.libraries import anatomy

_BRANCHES = ("drop_path1", "drop_path2")  # timm's names: the attention branch and the MLP branch of a block


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Set stochastic depth that grows linearly from 0 at the first block to `rate` at the last, in place.

    Raises:
        UserError: the rate is above 0 and the model (of transformers, torchvision) has no such branches.
    """
    if rate == 0 and not _has_branches(model):
        return
    blocks = list(_blocks(model))
    for block, block_rate in zip(blocks, calculate_drop_path_rates(rate, len(blocks)), strict=True):
        for branch in _BRANCHES:
            setattr(block, branch, DropPath(float(block_rate)) if block_rate > 0 else nn.Identity())


def check_shared_drop_path(student: nn.Module, teacher: nn.Module) -> None:
    """Raise a `UserError` where two models can't share drop-path masks."""
    if len(_blocks(student)) != len(_blocks(teacher)):
        raise UserError("drop-path masks can only be shared by teacher and student of the same depth")


class SharedDropPath:
    """Gives the residual branches of two models one set of drop-path masks a step.

    The rates are those of the student's `DropPath` modules. Where there are no masks, both models behave as before.

    Args:
        student: the model whose rates count.
        teacher: a model of the same depth.
        masks: gives the masks of the step that is running, as drawn by `draw`, or `None` outside any.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, masks: Callable[[], Sequence[Tensor] | None]) -> None:
        check_shared_drop_path(student, teacher)
        self._masks = masks
        self._rates = [_rate(getattr(block, branch)) for block in _blocks(student) for branch in _BRANCHES]
        self.handles: list[HookHandle] = []
        for model in (student, teacher):
            branches = [getattr(block, branch) for block in _blocks(model) for branch in _BRANCHES]
            self.handles += [hook_forward(module, self._at(index)) for index, module in enumerate(branches)]

    def draw(self, batch: int, device: torch.device) -> list[Tensor]:
        """Draw the masks of a step: for each branch `batch` values, 0 or 1/(1 - rate)."""
        keep = 1.0 - torch.tensor(self._rates, device=device)[:, None]
        kept = torch.bernoulli(keep.expand(-1, batch))
        return list(kept / keep.clamp_min(torch.finfo(keep.dtype).tiny))

    def _at(self, index: int) -> Wrapper:
        def forward(original: Forward, x_BNC: Tensor) -> Any:
            masks = self._masks()
            return original(x_BNC) if masks is None else x_BNC * masks[index].to(x_BNC.dtype)[:, None, None]

        return forward


def _rate(module: nn.Module) -> float:
    return float(module.drop_prob or 0.0) if isinstance(module, DropPath) else 0.0


def _blocks(model: nn.Module) -> tuple[nn.Module, ...]:
    if not _has_branches(model):
        raise UserError(
            f"{type(model).__name__} has no drop path that can be set; set drop_path to 0, or take the network of timm"
        )
    return anatomy(model).blocks


def _has_branches(model: nn.Module) -> bool:
    return all(hasattr(block, branch) for block in anatomy(model).blocks for branch in _BRANCHES)
