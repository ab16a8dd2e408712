"""Configuration files, and rules in the form they have there: their class and its settings."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from inspect import isabstract
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from attention_transfer.errors import UserError, nearest, raise_all
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.transfer import LossRule, NetworkRule, OperandRule, Rule
from attention_transfer.transfer.rules import find, names

for _name in names():  # the parser finds the subclasses that are imported
    find(_name)
# The parser takes a dataclass as it is unless it is told that its subclasses are meant.
set_parsing_settings(subclasses_enabled=[Rule])


def rule_config(rule: Rule) -> dict[str, Any]:
    """A rule as plain data, e.g. `{"class_path": "attention_transfer.Copy", "init_args": {"parts": "qk", …}}`."""
    kind = type(rule)
    own = kind.__module__.startswith("attention_transfer.transfer.")
    settings = {key: _plain(value) for key, value in asdict(rule).items()}
    return {
        "class_path": f"{'attention_transfer' if own else kind.__module__}.{kind.__qualname__}",
        "init_args": settings,
    }


def _plain(value: Any) -> Any:
    """Tuples, ranges and the like as lists, which YAML knows."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def read_rules(configs: list[dict[str, Any]]) -> list[Rule]:
    """Rules from plain data; only subclasses of `Rule` are made.

    Raises:
        UserError: there is no such rule, or it has no such settings.
    """
    raise_all(foreign_classes({"rules": configs}))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rules", type=list[Rule])
    try:
        rules: list[Rule] = parser.instantiate(parser.parse_object({"rules": configs})).rules
    except UserError:
        raise
    except (ArgumentError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the rules of a configuration can't be made ({reason}); restore it") from error
    return rules


def foreign_classes(config: Mapping[str, Any]) -> list[str]:
    """Classes that a configuration names and that are not known, a sentence each.

    The parser would import what they are in, and thereby run it. Known are rules of this package, and those of modules
    that are imported already.
    """
    found = [
        f"there is no rule {path!r}; {nearest(path, _rules())}"
        for path in _class_paths(config.get("rules"))
        if not _known(path)
    ]
    if _class_paths(pairing := config.get("pairing")):
        found.append(f"pairing is {pairing!r}; give its settings by name")
    return found


def _class_paths(value: Any, *, by_itself: bool = True) -> list[str]:
    """What the parser takes for a class: `class_path` at any depth, and text that stands by itself."""
    match value:
        case str() if by_itself:
            return [value]
        case list():
            return [path for part in value for path in _class_paths(part, by_itself=by_itself)]
        case dict():
            own = [str(value["class_path"])] if "class_path" in value else []
            return own + [path for part in value.values() for path in _class_paths(part, by_itself=False)]
    return []


def _known(path: str) -> bool:
    module, _, name = path.rpartition(".")
    if not module:
        return name in _rules()
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and issubclass(kind, Rule)


def _rules() -> set[str]:
    """Names of the rules that are there, but for those that are private."""
    found, open_ends = set(), [Rule]
    while open_ends:
        kinds = open_ends.pop().__subclasses__()
        open_ends += kinds
        found |= {kind.__name__ for kind in kinds if issubclass(kind, _KINDS) and not isabstract(kind)}
    return {name for name in found if not name.startswith("_")}


_KINDS = (OperandRule, LossRule, NetworkRule)


def read_config(path: str | Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A configuration file, laid over the one that it `extends`, and that over its own.

    `extends` is a path beside the file. Settings of groups, as `recipe`, are joined; all others, lists too, are
    replaced as a whole.

    Raises:
        UserError: a file is missing or no configuration, or the files extend each other in a circle, or too often.
    """
    file = Path(path).expanduser()
    if not file.exists():
        by = f", which {_seen[-1]} extends" if _seen else ""
        raise UserError(f"there is no configuration file {file}{by}; check the path")
    here = file.resolve()
    if here in _seen:
        raise UserError(f"{file} extends itself, by way of {' and '.join(p.name for p in _seen)}; end the circle")
    if len(_seen) >= _LONGEST:
        raise UserError(f"{_seen[0]} extends a file that extends another, and so on over {_LONGEST} times; join some")
    content = read_mapping(file)
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str) or not base:
        raise UserError(f"{file} extends {base!r}; name one file")
    return _over(read_config(file.parent / Path(base).expanduser(), (*_seen, here)), content)


_LONGEST = 16  # files in a row


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    joined = {**below}
    for key, value in above.items():
        group = joined.get(key)
        joined[key] = _over(group, value) if isinstance(group, dict) and isinstance(value, dict) else value
    return joined
