"""What holds for the arguments of every verb, from the command line and from Python: `~`, empty text, numbers."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_args, get_type_hints

from attention_transfer.errors import raise_all

P = ParamSpec("P")
R = TypeVar("R")


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose arguments are looked at before it begins.

    `~` at the beginning of text is the home directory. Text that is empty (as of a shell's variable that is not set),
    numbers that are none, and numbers beyond 64 bits raise a `UserError`, all of them at once.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given, problems, hints = signature.bind(*args, **kwargs), list[str](), get_type_hints(function)
        for name, value in given.arguments.items():
            default = signature.parameters[name].default
            if value is not default and value != default:
                given.arguments[name] = _checked(name, value, problems, hints[name])
        raise_all(problems)
        return function(*given.args, **given.kwargs)

    return checked


def parts_of(text: str, what: str, problems: list[str]) -> list[str]:
    """What stands between commas; none in empty text. An empty part is a problem."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if "" in parts:
        problems.append(f"{what} is {text!r}, which has an empty part; give values with single commas between them")
    return [part for part in parts if part]


def _checked(name: str, value: Any, problems: list[str], hint: Any = None) -> Any:
    """The value, as it is meant; what is wrong with it goes to the problems. No hint: its type may be any."""
    match value:
        case None if hint is not None and type(None) not in get_args(hint):
            problems.append(f"{name} is empty; give a value, or leave it out")
        case str() if not value.strip():
            problems.append(f"{name} is empty; give a value, or leave it out")
        case str() if "\0" in value:
            problems.append(f"{name} holds a null character; leave it out")
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
            return type(value)([_checked(f"{name}[{index}]", part, problems) for index, part in enumerate(value)])
        case _ if is_dataclass(value) and not isinstance(value, type):
            hints = {} if hint is None else get_type_hints(type(value))
            for field in fields(value):
                _checked(f"{name}.{field.name}", getattr(value, field.name), problems, hints.get(field.name))
    return value
