"""Rules in the form they have in `config.yaml`: their class and its settings."""

from __future__ import annotations

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
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(rule).items()}
    return {
        "class_path": f"{'attention_transfer' if own else kind.__module__}.{kind.__qualname__}",
        "init_args": settings,
    }


def read_rules(configs: list[dict[str, Any]]) -> list[Rule]:
    """Rules from plain data; only subclasses of `Rule` are made."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rules", type=list[Rule])
    rules: list[Rule] = parser.instantiate(parser.parse_object({"rules": configs})).rules
    return rules
