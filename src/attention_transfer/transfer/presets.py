"""Methods as data: where the student's weights come from × the rules that bind it × how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from attention_transfer.errors import UserError, nearest
from attention_transfer.transfer.copying import Copy
from attention_transfer.transfer.distill import Distill
from attention_transfer.transfer.guide import Guide
from attention_transfer.transfer.rule import Rule

Init = Literal["random", "teacher"]


@dataclass(frozen=True)
class Preset:
    """A named method.

    Attributes:
        summary: one line for tables and help texts.
        init: where the student's weights come from.
        rules: what binds the student to its teacher.
        recipe: values of the training recipe that differ from its defaults.
        source: where the method comes from.
    """

    summary: str
    init: Init
    rules: tuple[Rule, ...] = ()
    recipe: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)
    source: str = ""


# Learning rates and weights are those with the best validation accuracy on the embedded digits, 5 labels a class;
# docs/log.md has the search.
PRESETS: dict[str, Preset] = {
    "scratch": Preset(
        "random weights, no teacher: the floor",
        init="random",
        recipe={"lr": 4e-3},
    ),
    "finetune": Preset(
        "the teacher's weights, fine-tuned",
        init="teacher",
        recipe={"lr": 4e-3},
    ),
    "copy": Preset(
        "random weights, the teacher's attention in place of the student's own",
        init="random",
        rules=(Copy(),),
        recipe={"lr": 8e-3},
        source="Attention Copy, Li et al. 2024",
    ),
    "distill": Preset(
        "random weights, learns to attend as the teacher does",
        init="random",
        rules=(Distill(weight=10.0),),  # the paper's weight is 3
        recipe={"lr": 8e-3},
        source="Attention Distillation, Li et al. 2024",
    ),
    "gta": Preset(
        "the teacher's weights, fine-tuned with its class-token attention as a guide",
        init="teacher",
        rules=(Guide(weight=0.03),),
        recipe={"lr": 4e-3},
        source="GTA, Seo et al. 2024",
    ),
}


def preset(name: str) -> Preset:
    """Look a preset up.

    Raises:
        UserError: there is none of that name; the nearest is named.
    """
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]
