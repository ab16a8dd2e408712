"""Students: fresh or copied networks that fit a teacher."""

from __future__ import annotations

import copy
from typing import Any, Literal, cast

import timm
from timm.layers import trunc_normal_
from torch import nn

from attention_transfer.errors import UserError
from attention_transfer.vit.describe import describe

_TOKENS = ("cls_token", "pos_embed", "reg_token", "dist_token")


def student_like(
    teacher: nn.Module, *, num_classes: int, components: Literal["native", "standard"] = "native"
) -> nn.Module:
    """A randomly initialised network of the teacher's shape.

    Args:
        teacher: a plain timm vision transformer; it is left as it is.
        num_classes: outputs of the student's head.
        components: "native" gives the student every component of its teacher (LayerScale, registers, RoPE, …), which
            decides whether attention transfers at all (Qin et al. 2026, arXiv 2605.07191); "standard" a plain ViT of
            the same size.

    Returns:
        The student, on the CPU, in train mode, all parameters trainable, initialised as in Li et al. 2024: linear
        layers and tokens truncated normal with standard deviation 0.02.

    Raises:
        UserError: the teacher is not supported, or holds a parameter with no known initialisation.
    """
    student = _copied(teacher, num_classes) if components == "native" else _standard(teacher, num_classes)
    initialise(student)
    return student


def student_from(weights: nn.Module, *, num_classes: int) -> nn.Module:
    """A trainable copy of a network, with a new head (truncated normal, standard deviation 2e-5, as MAE fine-tunes)."""
    student: Any = _copied(weights, num_classes)
    if num_classes > 0:
        trunc_normal_(student.get_classifier().weight, std=2e-5)
        nn.init.zeros_(student.get_classifier().bias)
    return cast(nn.Module, student)


def initialise(model: nn.Module) -> None:
    """Initialise every parameter of a ViT at random, in place.

    Raises:
        UserError: a parameter has no known initialisation.
    """
    done: set[int] = set()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif own and callable(reset := getattr(module, "reset_parameters", None)):
            reset()  # convolutions, norms, LayerScale
        else:
            continue
        done |= {id(p) for p in own}
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        if id(parameter) in done:
            continue
        if leaf in _TOKENS or leaf == "relative_position_bias_table":
            trunc_normal_(parameter, std=0.02)
        elif leaf in ("q_bias", "v_bias"):
            nn.init.zeros_(parameter)
        elif leaf in ("gamma_1", "gamma_2"):  # BEiT's and EVA's LayerScale
            nn.init.constant_(parameter, 1e-5)
        else:
            raise UserError(
                f"no initialisation is known for {name} of {type(model).__name__}; "
                'build the student yourself, or with components="standard"'
            )


def _copied(model: nn.Module, num_classes: int) -> nn.Module:
    student: Any = copy.deepcopy(model).cpu()
    student.reset_classifier(num_classes)
    student.requires_grad_(True)
    student.train()
    return cast(nn.Module, student)


def _standard(teacher: nn.Module, num_classes: int) -> nn.Module:
    spec = describe(teacher)
    vit: Any = teacher
    if not spec.class_token:
        raise UserError(f'{spec.name} has no class token, which a standard ViT has; use components="native"')
    patch = (spec.image_size[0] // spec.grid[0], spec.image_size[1] // spec.grid[1])
    student = timm.create_model(
        "vit_base_patch16_224",
        img_size=spec.image_size,
        patch_size=patch,
        in_chans=spec.channels,
        embed_dim=spec.width,
        depth=spec.depth,
        num_heads=spec.heads,
        num_classes=num_classes,
        global_pool=vit.global_pool if vit.global_pool in ("token", "avg") else "token",
        pretrained_cfg_overlay={"mean": spec.mean, "std": spec.std},
    )
    return cast(nn.Module, student.train())
