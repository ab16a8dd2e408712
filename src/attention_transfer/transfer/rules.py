"""The rules by name, those of other packages included; a rule's class is loaded when it is looked up.

Another package registers a rule by an entry point, whose name is the rule's:

    [project.entry-points."attention_transfer.rules"]
    Rollout = "my_package.rollout:Rollout"
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from attention_transfer.errors import UserError, nearest

if TYPE_CHECKING:
    from attention_transfer.transfer.rule import Rule

GROUP = "attention_transfer.rules"
_OWN = {
    "Copy": "copying",
    "Distill": "distill",
    "Guide": "guide",
    "LogitKD": "outputs",
    "FeatureKD": "outputs",
    "L2SP": "regularisers",
    "BSS": "regularisers",
}


def names() -> list[str]:
    """The names of all rules; none of them is loaded."""
    return [*_OWN, *_registered()]


def find(name: str) -> type[Rule]:
    """The class of a rule.

    Raises:
        UserError: there is no rule of that name (the nearest is named), or what is registered under it is no rule.
    """
    from attention_transfer.transfer.rule import Rule

    if name in _OWN:
        module = importlib.import_module(f"attention_transfer.transfer.{_OWN[name]}")
        kind: object = getattr(module, name)
    elif name in _registered():
        kind = _registered()[name].load()
    else:
        raise UserError(f"there is no rule {name!r}; {nearest(name, names())}")
    if not (isinstance(kind, type) and issubclass(kind, Rule)):
        raise UserError(f"the entry point {name!r} of {GROUP} is no rule; derive it from LossRule or another base")
    return kind


@cache
def _registered() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in _OWN}
