"""One way to refuse a setting that is none of the values that it may have."""

from __future__ import annotations

from types import NoneType
from typing import Any, Literal, get_args, get_origin

from attention_transfer.errors import nearest


def wrong_choices(settings: object, **kinds: Any) -> list[str]:
    """Settings that have values which they may not have, a sentence each that names the nearest valid one.

    Args:
        settings: what has them, e.g. a rule; its class is named.
        kinds: by the name of a setting, its type: a `Literal`, or one `| None`.
    """
    found = []
    for name, kind in kinds.items():
        value, valid = getattr(settings, name), _values(kind)
        if value not in valid:
            words = [str(word) for word in valid if word is not None]
            found.append(f"{type(settings).__name__}.{name} is {value!r}; {nearest(str(value), words)}")
    return found


def _values(kind: Any) -> list[Any]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [None] if kind is NoneType else [value for part in get_args(kind) for value in _values(part)]
