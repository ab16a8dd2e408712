"""Rules in the form they have in `config.yaml`: their class and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from attention_transfer.transfer import Rule

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
    """Rules from plain data; only subclasses of `Rule` are made."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rules", type=list[Rule])
    rules: list[Rule] = parser.instantiate(parser.parse_object({"rules": configs})).rules
    return rules
