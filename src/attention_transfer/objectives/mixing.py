"""Mixed images and labels: mixup, CutMix, and TransMix, which weighs CutMix's labels by attention.

Shapes: B batch, C channels, H and W pixels, K classes; in attention B batch, H heads, N tokens, P patches.
"""

from __future__ import annotations

import copy
import threading
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn import functional as F
from torchvision.transforms import v2

from attention_transfer.config.mixing import Mixing
from attention_transfer.errors import UserError
from attention_transfer.transfer import AttentionTransfer, TransferOutput
from attention_transfer.vit import AttentionCall, Tokens, ViTSpec, describe, hook_attention


class MixedTargets(NamedTuple):
    """The labels of a batch in which each image is mixed with the one before it, and the first with the last.

    Attributes:
        first: classes of the images that were mixed into, (B,).
        second: classes of the images that were mixed in, (B,).
        lam: share of the first image in each, in [0, 1]: of the pixels' values (mixup) or of the area (CutMix).
        mask: (H, W), true where a pixel is the first image's; `None` unless CutMix was applied.
    """

    first: Tensor
    second: Tensor
    lam: float
    mask: Tensor | None = None

    def split(self, size: int) -> list[MixedTargets]:
        """Parts of so many images, with the share and the box of the whole."""
        parts = zip(self.first.split(size), self.second.split(size), strict=True)
        return [self._replace(first=first, second=second) for first, second in parts]


class MixedBatch(NamedTuple):
    """Mixed images, (B, C, H, W), and their labels."""

    images: Tensor
    targets: MixedTargets


def mix(images: Tensor, targets: Tensor, mixing: Mixing) -> MixedBatch:
    """Mix a batch by settings that have no problems.

    All randomness is drawn from torch's default generator of the CPU.

    Args:
        images: (B, C, H, W); they are not changed.
        targets: classes, (B,).
        mixing: what is mixed, and how often.
    """
    if not mixing.on or torch.rand(()).item() >= mixing.mix_probability:
        return MixedBatch(images, MixedTargets(targets, targets, lam=1.0))
    # Batches are shuffled, so that a neighbour is a random partner.
    partners, second = images.roll(1, 0), targets.roll(1, 0)
    if mixing.cutmix > 0 and (mixing.mixup == 0 or torch.rand(()).item() < mixing.mix_switch):
        kept = _cutmix_mask(images, mixing.cutmix)
        lam, mask = kept.double().mean().item(), kept.to(images.device)
        return MixedBatch(torch.where(mask, images, partners), MixedTargets(targets, second, lam, mask))
    lam = Beta(mixing.mixup, mixing.mixup).sample().item()
    return MixedBatch(torch.lerp(partners, images, lam), MixedTargets(targets, second, lam))


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
    logits: Tensor, targets: MixedTargets, weight: Tensor | float, *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy with the two labels of each image, a scalar in nats, mean over the batch.

    Args:
        logits: (B, K).
        targets: the two classes of each image.
        weight: of the first label, in [0, 1]: one for all, or (B,); the second label has the rest.
        label_smoothing: share of the labels that is spread evenly over all classes.
    """
    first_B, second_B = (
        F.cross_entropy(logits, classes, reduction="none", label_smoothing=label_smoothing)
        for classes in (targets.first, targets.second)
    )
    return (weight * first_B + (1 - weight) * second_B).mean()


class TransMixWeight:
    """Runs an `AttentionTransfer` once, and weighs CutMix's labels by the attention of its student or its teacher.

    Raises:
        UserError: the network that is named does not run, or has no class token.
    """

    def __init__(self, transfer: AttentionTransfer, whose: Literal["student", "teacher"]) -> None:
        self._transfer, self._whose = transfer, whose
        network, self._spec = _weighed_by(transfer, whose)
        self._rows: list[Tensor] | None = None
        self._thread = 0
        # Attached for good, not for each step, since nothing can be attached in a step that is compiled.
        transfer.attach(hook_attention(network, {self._spec.depth - 1: self._keep_row}))

    def __call__(self, images: Tensor, mask_HW: Tensor) -> tuple[TransferOutput, Tensor]:
        """What the transfer gives for mixed images (B, C, H, W), and the weight of the first label of each, (B,)."""
        rows: list[Tensor] = []
        if not torch.compiler.is_compiling():
            self._thread = threading.get_ident()  # first: other threads may look as soon as there are rows
        self._rows = rows
        try:
            output = self._transfer(images)
        finally:
            self._rows = None
        # The last row: on the first batch, a forward that matches heads may have come before.
        weight_B = transmix_weight(rows[-1], mask_HW, tokens=self._spec.tokens, grid=self._spec.grid)
        return output, weight_B

    def _keep_row(self, call: AttentionCall) -> AttentionCall:
        """Keep the class token's row in the forwards of `__call__`, and not in those of other threads."""
        if self._rows is not None and (torch.compiler.is_compiling() or self._thread == threading.get_ident()):
            self._rows.append(row_of_last_block(call))
        return call

    def __deepcopy__(self, memo: dict[int, Any]) -> TransMixWeight:
        """A copy that is attached to the copied transfer."""
        return TransMixWeight(copy.deepcopy(self._transfer, memo), self._whose)


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
