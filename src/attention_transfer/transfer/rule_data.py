"""Rules from plain data, as configurations and flags have them: a class and its settings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from inspect import isabstract
from typing import Any

from attention_transfer.config.base import settings_of
from attention_transfer.config.values import Misfit, brought, short
from attention_transfer.errors import UserError, nearest, raise_all
from attention_transfer.transfer import rules
from attention_transfer.transfer.rule import LossRule, NetworkRule, OperandRule, Rule

_KINDS = (OperandRule, LossRule, NetworkRule)


def read_rules(configs: Sequence[Any]) -> list[Rule]:
    """Rules from plain data; nothing is imported but what is registered as a rule.

    Args:
        configs: for each a mapping with `class_path` and perhaps `init_args`, or a name alone.

    Raises:
        UserError: there is no such rule, or it has no such settings; every mistake is listed.
    """
    found, problems = [], list[str]()
    for config in configs:
        try:
            found.append(_made(config))
        except UserError as error:
            problems += str(error).splitlines()
    raise_all(problems)
    return found


def find_rule(path: str) -> type[Rule]:
    """The class of a rule: by its name, or by the module that it is in, which is imported already.

    Raises:
        UserError: there is none; the nearest is named.
    """
    module, _, name = path.rpartition(".")
    if module in ("", "attention_transfer") and name in rules.names():
        return rules.find(name)
    kind = getattr(sys.modules.get(module), name, None) if module else _loaded().get(name)
    if kind is None and name in rules.names():  # registered, and not imported yet
        kind = rules.find(name)
        kind = kind if kind.__module__ == module else None
    if not (isinstance(kind, type) and issubclass(kind, Rule)):
        raise UserError(f"there is no rule {short(path)!r}; {nearest(path, {*rules.names(), *_loaded()})}")
    return kind


def _loaded() -> dict[str, type[Rule]]:
    """The rules whose classes are there, but for those that are private, by name."""
    found: dict[str, type[Rule]] = {}
    open_ends: list[type[Rule]] = [Rule]
    while open_ends:
        kinds = open_ends.pop().__subclasses__()
        open_ends += kinds
        found |= {kind.__name__: kind for kind in kinds if issubclass(kind, _KINDS) and not isabstract(kind)}
    return {name: kind for name, kind in found.items() if not name.startswith("_")}


def _made(config: Any) -> Rule:
    if isinstance(config, str):
        config = {"class_path": config}
    if not (isinstance(config, dict) and isinstance(config.get("class_path"), str)):
        raise UserError(f"rules holds {short(config)}, which is none; name one with its settings")
    kind, given = find_rule(config["class_path"]), config.get("init_args") or {}
    extra = [name for name in config if name not in ("class_path", "init_args")]
    if extra or not isinstance(given, dict):
        raise UserError(f"rules holds {short(config)}; give class_path, and the settings by name in init_args")
    settings = settings_of(kind) if is_dataclass(kind) else {}
    problems, values = list[str](), {}
    for name, value in given.items():
        if name not in settings:
            problems.append(f"there is no option {str(name)!r} of {kind.__name__}; {nearest(str(name), settings)}")
            continue
        try:
            values[name] = brought(value, settings[name].kind, f"{kind.__name__}.{name}")
        except Misfit as error:
            problems.append(str(error))
    raise_all(problems)
    try:
        return kind(**values)
    except UserError:
        raise
    except (ValueError, TypeError) as error:  # of a rule of someone else's
        raise UserError(f"the rule {kind.__name__} can't be made ({' '.join(str(error).split())[:200]})") from error
