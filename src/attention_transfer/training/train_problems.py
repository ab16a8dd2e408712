"""What is wrong with what `train` is asked for, found before anything is made, read or written."""

from __future__ import annotations

import logging
from pathlib import Path

from attention_transfer.config.choices import AUTO
from attention_transfer.config.recipe import Recipe
from attention_transfer.config.training import Train
from attention_transfer.data import check_subset
from attention_transfer.engine.compiler import compiler_problems
from attention_transfer.engine.fit import fit_problems
from attention_transfer.training.inputs import input_problems
from attention_transfer.training.run_files import TrainedConfig
from attention_transfer.training.run_folder import RunFolder
from attention_transfer.training.tune import tune_problems
from attention_transfer.transfer import FeatureKD, Guide, NetworkRule
from attention_transfer.vit import parts_problems

log = logging.getLogger("attention_transfer")


def train_problems(config: Train) -> list[str]:
    """Every mistake in what is asked for, with what the preset fills in; a sentence each."""
    recipe = config.recipe or Recipe()
    return [
        *config.problems(),
        *check_subset(config.fraction, config.shots),
        *recipe.problems(),
        *_of_the_pair(config, recipe),
        *_of_the_parts(config),
        *input_problems(config.seed, config.image_size),
        *compiler_problems(recipe, config.device),
        *_untaught(config),
        *fit_problems(recipe, **config.place),
        *tune_problems(config.tune, config.devices, config.nodes),
    ]


def _of_the_pair(config: Train, recipe: Recipe) -> list[str]:
    """A teacher, a student or what joins them is missing, or has no effect."""
    rules = config.rules or []
    taught = [rule for rule in rules if rule.needs_teacher]
    problems = []
    if config.teacher is None and (taught or config.init == "teacher"):
        problems.append(
            f"preset {config.preset!r} needs a teacher; name one with --teacher, or make one first: "
            "attention-transfer pretrain --out runs/teacher"
        )
    if config.teacher is None and config.pretrained is not True:
        problems.append("pretrained says which weights the teacher has, but no teacher is named; add --teacher")
    if config.student is not None and config.init != "random":
        problems.append("a student of its own starts from random weights; leave --student out, or set --init random")
    if config.pairing is not None and not taught:
        problems.append(
            f"pairing has no effect without rules, which preset {config.preset!r} does not have; leave it out"
        )
    if config.repair and not taught:
        problems.append(
            f"repair has no effect without rules that read the teacher, which preset {config.preset!r} does not have; "
            "leave it out"
        )
    if config.repair and any(isinstance(rule, FeatureKD) for rule in taught):
        problems.append(
            "FeatureKD compares token by token, and repair gives the teacher one more token; leave one of the two out"
        )
    if config.init == "random" and any(isinstance(rule, Guide) for rule in rules):
        log.warning("Guide keeps attention where it was, but a student that starts at random has none to keep")
    if recipe.share_drop_path and not (taught and recipe.drop_path != AUTO and recipe.drop_path > 0):
        problems.append("recipe.share_drop_path has no effect without rules and a drop_path above 0; leave it out")
    return problems


def _of_the_parts(config: Train) -> list[str]:
    """Parts of networks that do not exist, or have no effect."""
    found = [*parts_problems(config.init_parts or []), *parts_problems(config.trained or [])]
    if config.init_parts and config.init == "random":
        found.append("init_parts has no effect on random weights; set init to teacher or to a network")
    return found


def _untaught(config: Train) -> list[str]:
    """Rules that read the class logits of a teacher which never saw a class."""
    teacher, rules, tunes = config.teacher, config.rules or [], config.tune_teacher
    named = [type(rule).__name__ for rule in rules if isinstance(rule, NetworkRule) and rule.reads_teacher_logits]
    folder = None if teacher is None else RunFolder(Path(teacher))
    if tunes and teacher is None:
        return ["tune_teacher fine-tunes a teacher, but none is named; add --teacher"]
    if tunes or not named or folder is None or not folder.has("config.yaml"):
        return []
    if isinstance(folder.config(), TrainedConfig):
        return []
    return [
        f"{', '.join(named)} needs a teacher that knows the classes, but {teacher} was pre-trained without labels; "
        "add --tune-teacher"
    ]
