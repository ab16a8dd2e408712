"""One training step of each method, for `bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.attention import Impl, attention_logits
from attention_transfer.errors import UserError, nearest
from attention_transfer.transfer import AttentionTransfer, Copy, Distill, Guide, Rule
from attention_transfer.vit import AttentionCall, describe, load_vit, logits_of, student_like


class _Materialised(Distill):
    """Distillation as Li et al.'s released code computes it: maps formed in the step's own dtype, the student's once.

    What a fused loss is worth is the distance to this, not to `impl="reference"`, whose maps are float32 or wider.
    """

    def attend(self, student: AttentionCall, teacher: AttentionCall) -> tuple[Tensor, Tensor]:
        """The output of the student's attention and its mean cross-entropy, from one pair of formed logits."""
        logits_s = attention_logits(student.q, student.k, scale=student.scale, mask=student.mask)
        logits_t = attention_logits(teacher.q, teacher.k, scale=teacher.scale, mask=teacher.mask)
        ce_BHN = -(logits_t.softmax(dim=-1) * logits_s.log_softmax(dim=-1)).sum(dim=-1)
        return logits_s.softmax(dim=-1).to(student.v.dtype) @ student.v, ce_BHN.mean()

    def how(self, student: AttentionCall, teacher: AttentionCall) -> str:  # noqa: ARG002 - the rules' own signature
        """Always the same."""
        return "maps formed in the dtype of the step"


TimedStep = Callable[[], None]
CLASSES = 10
ROUTES: tuple[str, ...] = tuple(impl for impl in get_args(Impl) if impl != "auto")
"""Every implementation of the losses that can be asked for."""

RULES: dict[str, Rule] = {
    "copy": Copy(),
    "distill": Distill(),
    **{f"distill-{route}": Distill(impl=route) for route in ROUTES},  # type: ignore[arg-type] # one of Impl's names
    "materialised": _Materialised(),
    "gta": Guide(),
}
METHODS = ("floor", "finetune", "logit-kd", *RULES)


@dataclass(frozen=True)
class Bench:
    """What every method of one measurement shares.

    Attributes:
        model: teacher and student, by name.
        image_size: input pixels, height and width.
        batch_size: images a step.
        device: "cpu", "cuda" or "mps".
        dtype: "float32", or the precision of autocast: "bfloat16", "float16".
        compiled: run the step through `torch.compile`.
    """

    model: str
    image_size: int
    batch_size: int
    device: str
    dtype: str
    compiled: bool


def check_methods(methods: Sequence[str]) -> None:
    """Raise a `UserError` for a method that there is not."""
    for method in methods:
        if method not in METHODS:
            raise UserError(f"there is no method {method!r} to measure; {nearest(method, METHODS)}")


def teacher_of(bench: Bench) -> nn.Module:
    """The frozen teacher, with random weights: only its cost matters."""
    with torch.device(bench.device):  # large networks are initialised quickly there
        teacher = load_vit(bench.model, pretrained=False, num_classes=CLASSES, image_size=bench.image_size)
    return teacher.requires_grad_(False).to(bench.device)


def step_of(method: str, teacher: nn.Module, bench: Bench) -> TimedStep:
    """A forward and a backward pass of a method on a fixed batch; without the optimiser, which all of them share.

    "floor" is the least that distillation needs: a student's step and a teacher's forward pass.
    """
    with torch.device(bench.device):
        student = student_like(teacher, num_classes=CLASSES).to(bench.device)
    spec = describe(student)
    images = torch.randn(bench.batch_size, spec.channels, *spec.image_size, device=bench.device)
    targets = torch.randint(CLASSES, (bench.batch_size,), device=bench.device)
    loss = _loss_of(method, teacher, student)
    if bench.compiled:
        loss = torch.compile(loss)
    autocast: Any = (
        nullcontext() if bench.dtype == "float32" else torch.autocast(bench.device, getattr(torch, bench.dtype))
    )

    def step() -> None:
        with autocast:
            value = loss(images, targets)
        value.backward()
        for parameter in student.parameters():
            parameter.grad = None

    return step


def _loss_of(method: str, teacher: nn.Module, student: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    if method in RULES:
        transfer = AttentionTransfer(teacher, student, [RULES[method]]).train()

        def bound(images: Tensor, targets: Tensor) -> Tensor:
            output = transfer(images)
            loss: Tensor = output.total(F.cross_entropy(output.logits, targets))
            return loss

        return bound

    def plain(images: Tensor, targets: Tensor) -> Tensor:
        known: Tensor | None = None
        if method != "finetune":
            with torch.no_grad():
                known = logits_of(teacher(images))
        logits = logits_of(student(images))
        loss = F.cross_entropy(logits, targets)
        if method == "logit-kd" and known is not None:
            loss = loss + F.kl_div(logits.log_softmax(dim=-1), known.softmax(dim=-1), reduction="batchmean")
        return loss

    return plain
