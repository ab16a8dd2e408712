"""Methods as data: where the student's weights come from × the rules that bind it × how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from attention_transfer.errors import UserError, nearest
from attention_transfer.transfer.copying import Copy
from attention_transfer.transfer.distill import Distill
from attention_transfer.transfer.guide import Guide
from attention_transfer.transfer.outputs import FeatureKD, LogitKD
from attention_transfer.transfer.regularisers import BSS, L2SP
from attention_transfer.transfer.rule import Rule
from attention_transfer.vit import Part


@dataclass(frozen=True)
class Preset:
    """A named method.

    Attributes:
        summary: one line for tables and help texts.
        init: where the student's weights come from: "random", "teacher", or the name of a network.
        init_parts: parts that are taken from there, the rest at random; none is all of it.
        trained: parts that are trained; none is all of them.
        tune_teacher: fine-tune the teacher on the same images first.
        rules: what binds the student to its teacher.
        recipe: values of the training recipe that make the method what it is.
        source: where the method comes from.
    """

    summary: str
    init: str
    rules: tuple[Rule, ...] = ()
    init_parts: tuple[Part, ...] = ()
    trained: tuple[Part, ...] = ()
    tune_teacher: bool = False
    recipe: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)
    source: str = ""


# Rates and budgets are no part of a method: they follow from what is trained (training/defaults.py).
PRESETS: dict[str, Preset] = {
    "scratch": Preset(
        "random weights, no teacher: the floor",
        init="random",
    ),
    "finetune": Preset(
        "the teacher's weights, fine-tuned",
        init="teacher",
    ),
    "copy": Preset(
        "random weights, the teacher's attention in place of the student's own",
        init="random",
        rules=(Copy(),),
        source="Attention Copy, Li et al. 2024",
    ),
    "distill": Preset(
        "random weights, learns to attend as the teacher does",
        init="random",
        rules=(Distill(),),
        source="Attention Distillation, Li et al. 2024",
    ),
    "gta": Preset(
        "the teacher's weights, fine-tuned with its class-token attention as a guide",
        init="teacher",
        rules=(Guide(),),
        source="GTA, Seo et al. 2024",
    ),
    "gta-transmix": Preset(
        "GTA, with CutMix whose labels are weighed by attention",
        init="teacher",
        rules=(Guide(),),
        recipe={"cutmix": 1.0, "mix_probability": 0.5, "transmix": "student"},
        source="Seo et al. 2024; TransMix, Chen et al. 2022",
    ),
    "copy-q": Preset(
        "random weights, the teacher's queries in place of the student's own",
        init="random",
        rules=(Copy(parts="q"),),
        source="Li et al. 2024",
    ),
    "distill-output": Preset(
        "random weights, learns what the teacher's heads read",
        init="random",
        rules=(Distill(target="output", weight=120.0),),
        source="Qin et al. 2026",
    ),
    "feature-kd": Preset(
        "random weights, learns what the teacher's blocks put out",
        init="random",
        rules=(FeatureKD(),),
        source="Li et al. 2024, for comparison",
    ),
    "logit-kd": Preset(
        "random weights, learns the class logits of the teacher, which is fine-tuned first",
        init="random",
        rules=(LogitKD(),),
        tune_teacher=True,
        source="Hinton et al. 2015",
    ),
    "tuned-distill": Preset(
        "random weights, learns to attend as the teacher does after its fine-tuning",
        init="random",
        rules=(Distill(),),
        tune_teacher=True,
        source="Li et al. 2024",
    ),
    "linear-probe": Preset(
        "the teacher's weights, of which only a new classification layer is trained",
        init="teacher",
        trained=("head",),
    ),
    "qkv-only": Preset(
        "the teacher's weights, of which queries, keys, values and the classification layer are trained",
        init="teacher",
        trained=("qkv", "head"),
    ),
    "attention-init": Preset(
        "the teacher's attention weights, all else at random",
        init="teacher",
        init_parts=("attention",),
    ),
    "l2sp": Preset(
        "the teacher's weights, fine-tuned near where they were",
        init="teacher",
        rules=(L2SP(),),
        source="Li, Grandvalet and Davoine 2018",
    ),
    "bss": Preset(
        "the teacher's weights, fine-tuned with the smallest singular values of the features pressed down",
        init="teacher",
        rules=(BSS(),),
        source="Chen et al. 2019",
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
