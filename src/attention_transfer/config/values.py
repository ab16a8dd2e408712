"""Values as people write them, on a command line or in YAML, brought to the types of their settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from attention_transfer.config.base import members
from attention_transfer.errors import UserError, nearest

_INT = re.compile(r"[+-]?\d+(_\d+)*")
_FLOAT = re.compile(r"[+-]?(\d+(_\d+)*\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
TRUTHS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
_LONG = 80


class Misfit(UserError):
    """A value that is not of its type."""


def brought(value: Any, kind: Any, name: str) -> Any:
    """A value in the type of its setting.

    Args:
        value: text, or plain data.
        kind: the type: `bool`, `int`, `float`, `str`, a `Literal`, a list or mapping of these, or a union.
        name: of the setting.

    Raises:
        Misfit: it is of none of the types.
    """
    options = members(kind)
    plain = plain_of(value, name) if isinstance(value, str) else value
    if plain is None and (value is None or type(None) in options):
        if type(None) in options or kind is Any:
            return None
        raise Misfit(f"{name} is empty; give a value, or leave it out")
    for option in options:
        if get_origin(option) is Literal and (value in get_args(option) or plain in get_args(option)):
            return value if value in get_args(option) else plain
    for option in options:
        fits = _of_type(plain, option, name)
        if fits is not None:
            return fits[0]
    if isinstance(value, str) and (str in options or any(option in (Any, object) for option in options)):
        return plain if str not in options else value
    raise Misfit(_sentence(plain, kind, name))


def _of_type(value: Any, kind: Any, name: str) -> tuple[Any] | None:
    """A plain value in one type, as a tuple of one; `None` where it is of another."""
    container, inner = get_origin(kind) or kind, get_args(kind)
    if kind in (Any, object) and not isinstance(value, str):
        return (value,)
    if isinstance(value, bool):
        return (value,) if kind is bool else None
    if kind is int and isinstance(value, int):
        return (value,)
    if kind is float and isinstance(value, int | float):
        try:
            return (float(value),)
        except OverflowError:
            return (value,)  # which is refused as a number beyond 64 bits
    if container in (list, tuple, Sequence) and isinstance(value, list | tuple):
        item = inner[0] if inner else Any
        return ([brought(part, item, f"{name}[{index}]") for index, part in enumerate(value)],)
    if container is dict and isinstance(value, dict):
        return ({str(key): brought(part, inner[1] if inner else Any, f"{name}.{key}") for key, part in value.items()},)
    return None


def plain_of(text: str, name: str) -> Any:
    """Text as YAML has it: a number, a truth value, `null`, a list or a mapping; or the text itself.

    Raises:
        Misfit: it begins as a list or a mapping and is none, or it is a number of too many digits.
    """
    word = text.strip()
    if word[:1] in ("[", "{"):
        from attention_transfer.plain_yaml import plain

        try:
            return plain(word)
        except UserError as error:
            raise Misfit(f"{name} is {short(text)}, which {error}; check the brackets and quotes") from error
    if word.lower() in TRUTHS:
        return TRUTHS[word.lower()]
    if word in ("null", "Null", "NULL"):
        return None
    try:
        if _INT.fullmatch(word):
            return int(word)
    except ValueError as error:
        raise Misfit(f"{name}: a number of so many digits can't be read; give a smaller one") from error
    return float(word) if _FLOAT.fullmatch(word) else text


def type_names(kind: Any) -> list[str]:
    """The types of a union, or the one type, as Python calls them; not `None`."""
    kinds = [get_origin(option) or option for option in members(kind)]
    return [kind.__name__ for kind in kinds if isinstance(kind, type) and kind is not type(None)]


def _sentence(value: Any, kind: Any, name: str) -> str:
    """What is wrong with a value, and what its setting takes."""
    words = [str(word) for option in members(kind) if get_origin(option) is Literal for word in get_args(option)]
    types = type_names(kind)
    if words and not types:
        return f"{name} is {short(value)!r}; {nearest(str(value), words)}"
    if types == ["list"] and not isinstance(value, dict):
        return f'{name} is {short(value)}; give a list in quoted brackets, such as "[{short(value)}]"'
    return f"{name} is {short(value)}; give a value of type {' or '.join(types)}"


def short(value: Any) -> str:
    """A value as a sentence has room for it."""
    text = "empty" if value is None or value == "" else str(value)
    return text if len(text) <= _LONG else f"{text[: _LONG // 2]}…{text[-_LONG // 4 :]}"
