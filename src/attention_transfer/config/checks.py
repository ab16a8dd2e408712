"""Values that do not come as text, but from Python: whether they are what their settings take."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_origin

from attention_transfer.config.base import Config, members, settings_of
from attention_transfer.config.values import short, type_names
from attention_transfer.errors import raise_all

C = TypeVar("C", bound=Config)


def checked(config: C) -> C:
    """The configuration with `~` at the beginning of text as the home directory.

    Raises:
        UserError: text is empty (as of a shell's variable that is not set), a number is none, or beyond 64 bits, or a
            value is of another type than its field; all of it is listed.
    """
    problems: list[str] = []
    meant = {}
    for name, setting in settings_of(type(config)).items():
        value = getattr(config, name)
        if value is not setting.default and value != setting.default:
            meant[name] = _checked(name, value, problems, setting.kind)
    raise_all(problems)
    return replace(config, **meant)


def _checked(name: str, value: Any, problems: list[str], kind: Any) -> Any:
    """The value, as it is meant; what is wrong with it goes to the problems. A type that is not known is `Any`."""
    match value:
        case None if kind is not Any and type(None) not in members(kind):
            problems.append(f"{name} is empty; give a value, or leave it out")
        case str() if not value.strip():
            problems.append(f"{name} is empty; give a value, or leave it out")
        case str() if "\0" in value:
            problems.append(f"{name} holds a null character; leave it out")
        case str() | bool() | int() | float() | list() | tuple() | dict() if not _fits(value, kind):
            problems.append(f"{name} is {short(repr(value))}; give a value of type {' or '.join(type_names(kind))}")
        case str() if value.startswith("~"):
            return os.path.expanduser(value)  # noqa: PTH111 - a Path would take a slash from the end, and //
        case Path():
            return value.expanduser()
        case bool():
            pass
        case int() if abs(value) >= 2**63:
            problems.append(f"{name} is a number beyond 64 bits; give a smaller one")
        case float() if not math.isfinite(value):
            problems.append(f"{name} is {value}; give a finite number")
        case list() | tuple():
            return type(value)([_checked(f"{name}[{index}]", part, problems, Any) for index, part in enumerate(value)])
        case _ if is_dataclass(value) and not isinstance(value, type):
            settings = {} if kind is Any else settings_of(type(value))  # a rule's own types may be any
            for f in fields(value):
                hint = settings[f.name].kind if f.name in settings else Any
                _checked(f"{name}.{f.name}", getattr(value, f.name), problems, hint)
    return value


def _fits(value: object, kind: Any) -> bool:
    """Whether plain data is of a type, or of one of a union; a word that is no choice is said elsewhere."""
    options = [get_origin(option) or option for option in members(kind)]
    fitting = next(kinds for own, kinds in _FITTING.items() if isinstance(value, own))  # NumPy's float is a float
    return any(option in (Any, object, *fitting) for option in options)


_FITTING: dict[type, tuple[Any, ...]] = {
    bool: (bool,),  # before int, which it is
    str: (str, Path, Literal),
    int: (int, float),
    float: (float,),
    dict: (dict, Mapping),
    object: (list, tuple, Sequence),
}
