"""Configuration files, and rules in the form they have there: their class and its settings."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from attention_transfer.errors import UserError
from attention_transfer.training.run_files import read_yaml
from attention_transfer.transfer import Rule

# The parser takes a dataclass as it is unless it is told that its subclasses are meant.
set_parsing_settings(subclasses_enabled=[Rule])


_LONGEST = 20  # chain of files that extend each other


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


def read_config(path: str | Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A configuration file, laid over the one that it `extends`, and that over its own.

    `extends` is a path beside the file. Settings of groups, as `recipe`, are joined; all others, lists too, are
    replaced as a whole.

    Raises:
        UserError: a file is missing or no configuration, or the files extend each other in a circle.
    """
    file = Path(path)
    if not file.is_file():
        by = f", which {_seen[-1]} extends" if _seen else ""
        raise UserError(f"there is no configuration file {file}{by}; check the path")
    here = file.resolve()
    if len(_seen) >= _LONGEST:
        raise UserError(f"{_seen[0]} extends more than {_LONGEST} files, one by way of the other; put some together")
    if here in _seen:
        raise UserError(f"{file} extends itself, by way of {' and '.join(p.name for p in _seen)}; end the circle")
    content = read_yaml(file)
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise UserError(f"{file} extends {base!r}; name one file")
    return _over(read_config(file.parent / base, (*_seen, here)), content)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    joined = {**below}
    for key, value in above.items():
        group = joined.get(key)
        joined[key] = _over(group, value) if isinstance(group, dict) and isinstance(value, dict) else value
    return joined
