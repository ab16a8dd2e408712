"""Methods as data: where the student's weights come from × the rules that bind it × how it is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from attention_transfer.config.choices import Part
from attention_transfer.config.recipe import Recipe
from attention_transfer.errors import UserError, nearest

if TYPE_CHECKING:
    from attention_transfer.transfer import Rule


class Named(NamedTuple):
    """A rule by its name, with its settings; it loads torch, and so it is made when it is first asked for."""

    name: str
    settings: Mapping[str, Any] = {}

    def made(self) -> Rule:
        """The rule.

        Raises:
            UserError: there is no rule of that name, or it has no such settings.
        """
        rules = import_module("attention_transfer.transfer.rules")  # a room above this one
        rule: Rule = rules.find(self.name)(**self.settings)
        return rule


class _Rules:
    """A field that takes rules, or their names, and gives rules."""

    def __get__(self, method: Preset | None, owner: type) -> tuple[Rule, ...]:
        if method is None:  # the default
            return ()
        given = method.__dict__["rules"]
        if any(isinstance(rule, Named) for rule in given):
            given = tuple(rule.made() if isinstance(rule, Named) else rule for rule in given)
            method.__dict__["rules"] = given
        return given  # type: ignore[no-any-return] # of an instance's dict

    def __set__(self, method: Preset, rules: Iterable[Rule | Named]) -> None:
        method.__dict__["rules"] = tuple(rules)


@dataclass(frozen=True)
class Preset:
    """A named method."""

    summary: str
    """One line for tables and help texts."""

    init: str
    """Where the student's weights come from: "random", "teacher", or the name of a network."""

    rules: _Rules = _Rules()
    """What binds the student to its teacher: rules, which are made when they are first read where they are `Named`."""

    init_parts: tuple[Part, ...] = ()
    """Parts that are taken from there, the rest at random; none is all of it."""

    trained: tuple[Part, ...] = ()
    """Parts that are trained; none is all of them."""

    tune_teacher: bool = False
    """Fine-tune the teacher on the same images first."""

    recipe: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)
    """Values of the training recipe that make the method what it is."""

    source: str = ""
    """Where the method comes from."""

    @property
    def own_recipe(self) -> Recipe:
        """The recipe with these values, all others left open."""
        return self.recipe_with(Recipe())

    def recipe_with(self, common: Recipe) -> Recipe:
        """A recipe that several methods share, with this method's own values where it has the defaults."""
        own = {name: value for name, value in self.recipe.items() if getattr(common, name) == getattr(Recipe(), name)}
        return replace(common, **own)  # type: ignore[arg-type] # checked by tests, of every preset


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
        rules=(Named("Copy"),),
        source="Attention Copy, Li et al. 2024",
    ),
    "distill": Preset(
        "random weights, learns to attend as the teacher does",
        init="random",
        rules=(Named("Distill"),),
        source="Attention Distillation, Li et al. 2024",
    ),
    "gta": Preset(
        "the teacher's weights, fine-tuned with its class-token attention as a guide",
        init="teacher",
        rules=(Named("Guide"),),
        source="GTA, Seo et al. 2024",
    ),
    "gta-transmix": Preset(
        "GTA, with CutMix whose labels are weighed by attention",
        init="teacher",
        rules=(Named("Guide"),),
        recipe={"cutmix": 1.0, "mix_probability": 0.5, "transmix": "student"},
        source="Seo et al. 2024; TransMix, Chen et al. 2022",
    ),
    "copy-q": Preset(
        "random weights, the teacher's queries in place of the student's own",
        init="random",
        rules=(Named("Copy", {"parts": "q"}),),
        source="Li et al. 2024",
    ),
    "distill-output": Preset(
        "random weights, learns what the teacher's heads read",
        init="random",
        rules=(Named("Distill", {"target": "output", "weight": 120.0}),),
        source="Qin et al. 2026",
    ),
    "feature-kd": Preset(
        "random weights, learns what the teacher's blocks put out",
        init="random",
        rules=(Named("FeatureKD"),),
        source="Li et al. 2024, for comparison",
    ),
    "logit-kd": Preset(
        "random weights, learns the class logits of the teacher, which is fine-tuned first",
        init="random",
        rules=(Named("LogitKD"),),
        tune_teacher=True,
        source="Hinton et al. 2015",
    ),
    "tuned-distill": Preset(
        "random weights, learns to attend as the teacher does after its fine-tuning",
        init="random",
        rules=(Named("Distill"),),
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
        rules=(Named("L2SP"),),
        source="Li, Grandvalet and Davoine 2018",
    ),
    "bss": Preset(
        "the teacher's weights, fine-tuned with the smallest singular values of the features pressed down",
        init="teacher",
        rules=(Named("BSS"),),
        source="Chen et al. 2019",
    ),
}


@cache
def of_other_packages() -> dict[str, Preset]:
    """Presets that other packages registered by entry points, by name."""
    from importlib.metadata import entry_points  # which takes longer than all else here

    found = {e.name: e.load() for e in entry_points(group="attention_transfer.presets") if e.name not in PRESETS}
    return {name: method for name, method in found.items() if isinstance(method, Preset)}


def preset(name: str) -> Preset:
    """Look a preset up.

    Raises:
        UserError: there is none of that name; the nearest is named.
    """
    found = PRESETS.get(name) or of_other_packages().get(name)
    if found is None:
        raise UserError(f"there is no preset {name!r}; {nearest(name, [*PRESETS, *of_other_packages()])}")
    return found
