"""Students: fresh or copied networks that fit a teacher."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from attention_transfer.config.choices import Pool
from attention_transfer.errors import UserError, nearest
from attention_transfer.vit.copies import check_copied, plain
from attention_transfer.vit.describe import describe
from attention_transfer.vit.libraries import library_of, timm_library, unwrapped
from attention_transfer.vit.libraries.initial import truncated_normal
from attention_transfer.vit.pooling import set_pool

Components = Literal["native", "standard"]


def initialise(model: nn.Module) -> None:
    """Give every parameter of a ViT a random value, in place: linear layers and tokens truncated normal, 0.02.

    Raises:
        UserError: a parameter has no known initialisation.
    """
    bare = unwrapped(model)
    library_of(bare).initialise(bare)


def student_like(
    teacher: nn.Module,
    *,
    num_classes: int,
    components: Components = "native",
    pool: Pool | None = None,
) -> nn.Module:
    """A randomly initialised network of the teacher's shape.

    Args:
        teacher: a plain vision transformer; it is left as it is.
        num_classes: outputs of the student's head.
        components: "native" gives the student every component of its teacher (LayerScale, registers, RoPE, …), which
            decides whether attention transfers at all (Qin et al. 2026, arXiv 2605.07191); "standard" a plain ViT (of
            timm) of the same size.
        pool: what the head reads, "token" or "avg" (see [`set_pool`][attention_transfer.vit.set_pool]); default as in
            the teacher.

    Returns:
        The student, on the CPU, in train mode, all parameters trainable, initialised as in Li et al. 2024: linear
        layers and tokens truncated normal with standard deviation 0.02.

    Raises:
        UserError: the teacher is not supported, or holds a parameter with no known initialisation.
    """
    describe(teacher)
    bare = plain(teacher)
    if components not in get_args(Components):
        raise UserError(f"components is {components!r}; {nearest(components, get_args(Components))}")
    if components == "native":
        student = library_of(bare).fresh(bare, num_classes)
    else:
        student = timm_library().standard(describe(bare), num_classes, library_of(bare).pool(bare))
    if pool is not None:
        set_pool(student, pool)
    return student.requires_grad_(True).train()


def student_from(weights: nn.Module, *, num_classes: int, pool: Pool | None = None) -> nn.Module:
    """A trainable copy of a network, with a new head (truncated normal, standard deviation 2e-5, as MAE fine-tunes).

    Adapters of peft are merged, parametrised weights become plain ones, half precision becomes float32; each is logged.
    That the copy attends as its source does is checked on an image of noise.

    Args:
        weights: a plain vision transformer; it is left as it is.
        num_classes: outputs of the student's head.
        pool: what the head reads, "token" or "avg"; default as in the network.

    Raises:
        UserError: the network is not supported, or a copy of it would be another network.
    """
    describe(weights)
    bare = plain(weights)
    library = library_of(bare)
    student = library.with_head(bare, num_classes)
    check_copied(weights, student)
    if head := library.head(student):
        truncated_normal(head.weight, std=2e-5)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    if pool is not None:
        set_pool(student, pool)
    return student.requires_grad_(True).train()
