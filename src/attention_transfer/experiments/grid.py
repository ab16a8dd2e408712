"""The grid of a comparison: methods × amounts of labels × seeds × any other settings, and what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from attention_transfer.config.base import Setting, options_of, parts_of, settings_of, with_settings
from attention_transfer.config.presets import PRESETS, preset
from attention_transfer.config.recipe import Recipe
from attention_transfer.config.training import Compare, Student, Train
from attention_transfer.config.values import brought, short
from attention_transfer.data import check_subset
from attention_transfer.errors import UserError, nearest, raise_all
from attention_transfer.experiments.rows import Labels
from attention_transfer.places import expanded
from attention_transfer.transfer import Rule

T = TypeVar("T")

_NO_AXES = ("data", "strict", "rules")
_LONGEST = 120  # letters of a run's name


@dataclass(frozen=True)
class Cell:
    """One run of the grid: a method, an amount of labels, a seed, and what is varied besides."""

    preset: str
    labels: Labels
    seed: int
    settings: Mapping[str, Any]

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.preset}, {self.labels.title}, seed {self.seed}"


def grid_of(config: Compare) -> list[Cell]:
    """Every run, ordered so that an early stop leaves whole seeds behind.

    Raises:
        UserError: an axis is unknown or empty, or a value is wrong or given twice; every mistake is listed.
    """
    problems: list[str] = []
    names = _listed(config.presets, str, "presets", problems)
    numbers = _listed(config.seeds, int, "seeds", problems)
    amounts = [Labels(shots=n) for n in _listed(config.shots, int, "shots", problems)]
    shares = _listed(config.fractions, float, "fractions", problems, lambda share: Labels(share).title)
    amounts += [Labels(fraction=share) for share in shares]
    unknown = [str(error) for name in dict.fromkeys(names) if (error := _unknown(name))]
    problems += unknown
    for labels in amounts:
        problems += check_subset(labels.fraction, labels.shots)
    for what, values in (("presets", names), ("seeds", numbers)):
        if not values:
            problems.append(f"{what} is empty; name at least one")
    # Where a method is not known, its rules might be any that there are.
    axes = _axes(config, list(PRESETS) if unknown or not names else names, problems)
    raise_all(problems)
    return [
        Cell(name, replace(labels, settings=in_words(settings)), seed, settings)
        for labels in amounts or [Labels()]
        for settings in map(dict, product(*axes))
        for seed in numbers
        for name in names
    ]


def run_of(config: Compare, cell: Cell, folder: Path) -> Train:
    """What `train` is told for a cell of the grid; settings of rules that its method lacks have no part in it."""
    shared = {name: getattr(config, name) for name in settings_of(Student)}
    own = config.rules if config.rules is not None else list(preset(cell.preset).rules)
    of_rules = {name.removeprefix("rules."): v for name, v in cell.settings.items() if name.startswith("rules.")}
    applied = {name: value for name, value in of_rules.items() if any(_has(rule, name) for rule in own)}
    taught = any(rule.needs_teacher for rule in own)
    plain = {
        name: value
        for name, value in cell.settings.items()
        if not name.startswith("rules.") and (taught or name != "repair")
    }
    run = replace(
        Train(cell.preset, **shared),
        seed=cell.seed,
        fraction=cell.labels.fraction,
        shots=cell.labels.shots,
        tune_teacher=False,
        out=str(folder / "runs" / _name(cell, plain | {f"rules.{name}": value for name, value in applied.items()})),
    )
    run = with_settings(replace(run, recipe=preset(cell.preset).recipe_with(run.recipe or Recipe())), plain)
    if applied:
        run = replace(run, rules=[replace_known(rule, applied) for rule in own])
    return run if taught else replace(run, pairing=None, repair=False)  # which have an effect on other methods alone


def replace_known(rule: Rule, values: Mapping[str, Any]) -> Rule:
    """A rule with those of these settings that it has."""
    known = {name: value for name, value in values.items() if _has(rule, name)}
    return replace(rule, **known) if known and is_dataclass(rule) else rule


def setting_named(name: str, rules: Sequence[Rule], what: str) -> tuple[str, Setting]:
    """A setting of a student that may be varied, by its dotted name or by the last part of it, e.g. lr.

    Args:
        name: as it is given.
        rules: whose settings there are besides, as rules.weight.
        what: what it is given for, for the message.

    Raises:
        UserError: there is none, or the name fits several.
    """
    known = {n: setting for n, setting in options_of(Student).items() if n not in _NO_AXES and setting.group is None}
    for rule in rules:
        known |= {f"rules.{f.name}": settings_of(type(rule))[f.name] for f in fields(rule) if f.init}
    if name in known:
        return name, known[name]
    ends = [option for option in known if option.rpartition(".")[2] == name]
    if len(ends) == 1:
        return ends[0], known[ends[0]]
    if ends:
        raise UserError(f"{what} can't tell which {name!r} is meant; did you mean {' or '.join(map(repr, ends))}?")
    raise UserError(f"{what} can't change {short(name)!r}; {nearest(name, known)}")


def in_words(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Settings as tables and folder names have them."""
    return tuple((name, str(value)) for name, value in settings.items())


def repeated(what: str, values: Iterable[Any], key: Callable[[Any], Hashable] | None = None) -> list[str]:
    """A sentence for each value that is given more than once, however it is spelled: 1 and 1.0, runs/a and ./runs/a.

    Args:
        what: they are given for.
        values: as they are given, in the type of what they are given for.
        key: equal for values that are the same; default for numbers of one size and paths to one place.
    """
    alike: dict[Hashable, list[str]] = {}
    for value in values:
        alike.setdefault((key or _key)(value), []).append(repr(value))
    found = []
    for spelled in alike.values():
        if len(spelled) > 1:
            once = list(dict.fromkeys(spelled))
            said = f"{once[0]} twice" if len(once) == 1 else f"{' and '.join(once)}, which are the same"
            found.append(f"{what} has {said}; name each once")
    return found


def _key(value: Any) -> Hashable:
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    if isinstance(value, str):
        return expanded(value).absolute()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)


def _unknown(name: str) -> UserError | None:
    try:
        preset(name)
    except UserError as error:
        return error
    return None


def _axes(config: Compare, names: Sequence[str], problems: list[str]) -> list[list[tuple[str, Any]]]:
    """The further axes, each as its values with the full name of the setting, in its type."""
    rules = config.rules if config.rules is not None else [rule for method in names for rule in preset(method).rules]
    full_names: dict[str, str] = {}
    axes = []
    for name, values in (config.grid or {}).items():
        try:
            full, setting = setting_named(name, rules, "grid")
            axis = [brought(value, setting.kind, f"grid.{name}") for value in values]
        except UserError as error:
            problems.append(str(error))
            continue
        full_names[name] = full
        axes.append([(full, value) for value in axis])
        if not axis:
            problems.append(f"grid.{name} is empty; give at least one value")
        problems += repeated(f"grid.{name}", axis)
    problems += repeated("grid", full_names, full_names.get)
    return axes


def _has(rule: Rule, name: str) -> bool:
    return is_dataclass(rule) and any(f.name == name and f.init for f in fields(rule))


def _name(cell: Cell, settings: Mapping[str, Any]) -> str:
    """Of a run's folder."""
    ordered = {name: settings[name] for name in cell.settings if name in settings}
    name = f"{cell.preset}-{replace(cell.labels, settings=in_words(ordered)).slug}-seed{cell.seed}"
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _listed(
    value: str | Sequence[T],
    kind: Callable[[Any], T],
    what: str,
    problems: list[str],
    key: Callable[[Any], Hashable] | None = None,
) -> list[T]:
    """Values from a list or from text with commas, each once, in order."""
    values: list[T] = []
    for item in parts_of(value, what, problems) if isinstance(value, str) else value:
        try:
            found = kind(item.strip() if isinstance(item, str) else item)
        except (TypeError, ValueError, OverflowError):
            found = None
        # Of a list, 1.0 is a seed, 1.5 and True are none.
        if found is None or (not isinstance(item, str) and (found != item or isinstance(item, bool))):
            parts = "names" if kind is str else "numbers"
            problems.append(f"{what} has {item!r}, which is no {kind.__name__}; give {parts} separated by commas")
        else:
            values.append(found)
    problems += repeated(what, values, key)
    return values
