"""Mixed images and labels: mixup, CutMix, and TransMix, which weighs CutMix's labels by attention.

Shapes: B batch, C channels, H and W pixels, K classes; in attention B batch, H heads, N tokens, P patches.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn import functional as F
from torchvision.transforms import v2

from attention_transfer.config.mixing import Mixing
from attention_transfer.errors import UserError, raise_all
from attention_transfer.transfer import AttentionTransfer, TransferOutput
from attention_transfer.vit import AttentionCall, Tokens, ViTSpec, describe, hook_attention


@dataclass(frozen=True, eq=False)
class Mixed:
    """A batch in which each image is mixed with the one before it, and the first with the last.

    Attributes:
        images: mixed images, (B, C, H, W).
        targets_a: classes of the images that were mixed into, (B,).
        targets_b: classes of the images that were mixed in, (B,).
        lam: share of the first image in each, in [0, 1]: of the pixels' values (mixup) or of the area (CutMix).
        mask: (H, W), true where a pixel is the first image's; `None` where CutMix was not at work.
    """

    images: Tensor
    targets_a: Tensor
    targets_b: Tensor
    lam: float
    mask: Tensor | None = None

    def split(self, size: int) -> list[Mixed]:
        """In parts of so many images, with the share and the box of the whole."""
        parts = zip(self.images.split(size), self.targets_a.split(size), self.targets_b.split(size), strict=True)
        return [replace(self, images=images, targets_a=a, targets_b=b) for images, a, b in parts]


def mix(images: Tensor, targets: Tensor, mixing: Mixing) -> Mixed:
    """Mix a batch by settings that have no problems.

    All randomness is drawn from torch's default generator of the CPU.

    Args:
        images: (B, C, H, W); they are not changed.
        targets: classes, (B,).
        mixing: what is mixed, and how often.
    """
    if not mixing.on or torch.rand(()).item() >= mixing.mix_probability:
        return Mixed(images, targets, targets, lam=1.0)
    # Batches are shuffled, so that a neighbour is a random partner.
    partners, targets_b = images.roll(1, 0), targets.roll(1, 0)
    if mixing.cutmix > 0 and (mixing.mixup == 0 or torch.rand(()).item() < mixing.mix_switch):
        kept = _cutmix_mask(images, mixing.cutmix)
        lam, mask = kept.double().mean().item(), kept.to(images.device)
        return Mixed(torch.where(mask, images, partners), targets, targets_b, lam, mask)
    lam = Beta(mixing.mixup, mixing.mixup).sample().item()
    return Mixed(torch.lerp(partners, images, lam), targets, targets_b, lam)


def _cutmix_mask(images: Tensor, alpha: float) -> Tensor:
    """Where the images stay, (H, W), on the CPU: everywhere but in a random box."""
    # torchvision's transform gives images and soft labels; TransMix needs the box as well, so it is asked for that.
    left, top, right, bottom = v2.CutMix(alpha=alpha).make_params([images])["box"]
    mask_HW = torch.ones(images.shape[-2:], dtype=torch.bool)
    mask_HW[top:bottom, left:right] = False
    return mask_HW


@torch.no_grad()
def row_of_last_block(call: AttentionCall) -> Tensor:
    """The class token's row of the attention maps, (B, H, N), in float32 or wider, without gradient.

    Raises:
        UserError: there is no class token.
    """
    if not call.tokens.class_token:
        raise UserError('TransMix needs a class token, which this network does not have; set transmix to "off"')
    return call.query_row("class").as_logits().maps().squeeze(-2)


@torch.no_grad()
def transmix_weight(rows_BHN: Tensor, mask_HW: Tensor, *, tokens: Tokens, grid: tuple[int, int]) -> Tensor:
    """Weight of the first image's label by TransMix (Chen et al. 2022, arXiv 2111.09833).

    Half of it is the share of the image's area; the other half is the share of the attention that the class token
    pays to the patches of the first image, mean over heads.

    Args:
        rows_BHN: the class token's row of the last block's attention maps, over all tokens, (B, H, N).
        mask_HW: true where a pixel is the first image's, (H, W).
        tokens: what the tokens are; only the patches count.
        grid: patches (rows, columns); each counts as the image that its upper left pixel is of, as in the paper's code.

    Returns:
        (B,), in [0, 1], without gradient. Where no patch gets any attention, it is the share of the area.

    Raises:
        UserError: there are not as many patches as the grid has.
    """
    attention_BP = rows_BHN[..., tokens.patches(rows_BHN.shape[-1])].mean(dim=1)
    if attention_BP.shape[-1] != grid[0] * grid[1]:
        raise UserError(
            f"TransMix expects attention to {grid[0]}×{grid[1]} patches, but there are {attention_BP.shape[-1]}; give "
            "the network images of the size that it was made for"
        )
    pixels_HW = mask_HW.to(attention_BP)
    is_first_P = F.interpolate(pixels_HW[None, None], size=grid, mode="nearest").flatten()
    first_B, second_B = (attention_BP * is_first_P).sum(dim=-1), (attention_BP * (1 - is_first_P)).sum(dim=-1)
    area, total_B = pixels_HW.mean(), first_B + second_B
    attended_B = torch.where(total_B == 0, area, first_B / total_B)
    return (attended_B + area) / 2


def mixed_cross_entropy(
    logits: Tensor, mixed: Mixed, weight: Tensor | float, *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy with the two labels of each image, a scalar in nats, mean over the batch.

    Args:
        logits: (B, K).
        mixed: the batch; its targets are read.
        weight: of the first label, in [0, 1]: one for all, or (B,); the second label has the rest.
        label_smoothing: share of the labels that is spread evenly over all classes.
    """
    first_B, second_B = (
        F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
        for targets in (mixed.targets_a, mixed.targets_b)
    )
    return (weight * first_B + (1 - weight) * second_B).mean()


class _Rows:
    """Hears a network's last block, and keeps its class token's attention in the forwards inside a `with` block."""

    def __init__(self) -> None:
        self._kept: list[Tensor] | None = None
        self._thread = 0

    @contextmanager
    def kept(self) -> Iterator[list[Tensor]]:
        """The rows, (B, H, N), one a forward; those of other threads are not heard."""
        rows: list[Tensor] = []
        self._kept = rows
        if not torch.compiler.is_compiling():
            self._thread = threading.get_ident()
        try:
            yield rows
        finally:
            self._kept = None

    def __call__(self, call: AttentionCall) -> AttentionCall:
        if self._kept is not None and (torch.compiler.is_compiling() or self._thread == threading.get_ident()):
            self._kept.append(row_of_last_block(call))
        return call


class MixedLoss:
    """Mixes a batch, runs an `AttentionTransfer` on it once, and gives the task's loss.

    Args:
        transfer: what is trained.
        mixing: how batches are mixed.
        label_smoothing: share of each label that is spread over all classes.

    Raises:
        UserError: the settings are wrong, or the attention that they name is not there; every reason is listed.

    Example:
        ```python
        mixed_loss = MixedLoss(transfer, Mixing(cutmix=1.0, transmix="student"))
        output, task = mixed_loss(images, targets)
        output.total(task).backward()
        ```
    """

    def __init__(self, transfer: AttentionTransfer, mixing: Mixing, *, label_smoothing: float = 0.0) -> None:
        raise_all(mixing.problems())
        self.transfer = transfer
        self.mixing = mixing
        self.label_smoothing = label_smoothing
        self._spec: ViTSpec | None = None
        self._rows = _Rows()
        if mixing.transmix != "off":
            network, self._spec = _weighed_by(transfer, mixing.transmix)
            # For good, and not in each step, as nothing can be attached in one that is compiled.
            transfer.attach(hook_attention(network, {self._spec.depth - 1: self._rows}))

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[TransferOutput, Tensor]:
        """What `transfer` gives for the mixed images, and the cross-entropy with the mixed labels, a scalar.

        Args:
            images: (B, C, H, W), normalised for the student.
            targets: classes, (B,).
        """
        return self.of(mix(images, targets, self.mixing))

    def of(self, mixed: Mixed) -> tuple[TransferOutput, Tensor]:
        """The same for images that are mixed already, or for a part of them."""
        weight: Tensor | float = mixed.lam
        if self._spec is None or mixed.mask is None:
            output = self.transfer(mixed.images)
        else:
            with self._rows.kept() as rows:
                output = self.transfer(mixed.images)
            row_BHN = rows[-1]  # the last: on the first batch, heads may be matched before
            weight = transmix_weight(row_BHN, mixed.mask, tokens=self._spec.tokens, grid=self._spec.grid)
        return output, mixed_cross_entropy(output.logits, mixed, weight, label_smoothing=self.label_smoothing)

    def __deepcopy__(self, memo: dict[int, Any]) -> MixedLoss:
        """A copy with a student of its own."""
        transfer = copy.deepcopy(self.transfer, memo)
        return MixedLoss(transfer, self.mixing, label_smoothing=self.label_smoothing)


def _weighed_by(transfer: AttentionTransfer, whose: Literal["student", "teacher"]) -> tuple[nn.Module, ViTSpec]:
    """The network whose attention weighs the labels, where its last block runs and has a class token."""
    network = transfer.student if whose == "student" else transfer.teacher
    if network is None:
        raise UserError('transmix="teacher" needs a rule for which the teacher runs; bind one, or choose "student"')
    spec = describe(network)
    if not spec.class_token:
        raise UserError(f'TransMix needs a class token, which {whose} {spec.name} does not have; set transmix to "off"')
    if network is transfer.teacher and transfer.teacher_depth < spec.depth:
        raise UserError(
            f'transmix="teacher" needs the teacher\'s last block, {spec.depth - 1}, but the rules read none after '
            f'{transfer.teacher_depth - 1}, where the teacher stops; bind the last layer too, or choose "student"'
        )
    return network, spec
