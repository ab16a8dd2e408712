"""Typed configurations: frozen dataclasses whose fields have docstrings. Names, types, defaults and help follow."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from attention_transfer.errors import nearest

if TYPE_CHECKING:
    from attention_transfer.transfer import Rule as Rule  # noqa: PLC0414 - configurations import it from here
else:

    class Rule:
        """Stands for a rule where types are read, because rules load torch."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of what a verb is told."""

    kept_elsewhere: ClassVar[tuple[str, ...]] = ()
    """Fields that a `config.yaml` does not have, because other fields say the same once the work is done."""

    def problems(self) -> list[str]:
        """What is wrong with the values, a sentence each, as far as that is known without loading anything.

        Here: words that are none of those to choose from.
        """
        found = []
        for name, setting in settings_of(type(self)).items():
            options, value = members(setting.kind), getattr(self, name)
            words = [word for option in options if get_origin(option) is Literal for word in get_args(option)]
            if isinstance(value, str) and words and str not in options and value not in words:
                found.append(f"{name} is {value!r}; {nearest(value, words)}")
        return found

    @classmethod
    def defaults(cls, given: Mapping[str, object]) -> dict[str, object]:  # noqa: ARG003 - for those that override it
        """On the command line, fields whose default depends on what is given."""
        return {}

    @classmethod
    def sorted_words(cls, words: Sequence[str]) -> dict[str, list[str]] | None:  # noqa: ARG003 - as above
        """Words without a flag by the fields that they belong to; `None` where their order says that.

        Raises:
            UserError: a word may belong to several.
        """
        return None


C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Setting:
    """A field of a configuration: its name, its type, and its default (`MISSING` where it has none)."""

    name: str
    kind: Any
    default: Any

    @property
    def group(self) -> type | None:
        """The dataclass that it holds, whose own fields have dotted names; `None` where it holds none."""
        return next((part for part in members(self.kind) if is_dataclass(part) and isinstance(part, type)), None)


def settings_of(kind: type) -> dict[str, Setting]:
    """The fields of a dataclass by name: its own, then those of its bases."""
    return _settings_of(kind)


@cache
def _settings_of(kind: type) -> dict[str, Setting]:
    try:
        hints = get_type_hints(kind)
    except NameError:  # of a class of someone else's, whose types are imported for type checkers alone
        hints = {}
    return {
        f.name: Setting(
            f.name, hints.get(f.name, Any), f.default if f.default_factory is MISSING else f.default_factory()
        )
        for f in sorted(fields(kind), key=lambda f: _first_home(kind, f.name))
        if f.init
    }


def _first_home(kind: type, name: str) -> int:
    """How far above a class the first one is that has a field."""
    return max(depth for depth, base in enumerate(kind.__mro__) if name in vars(base).get("__annotations__", {}))


def options_of(kind: type) -> dict[str, Setting]:
    """The fields of a dataclass by dotted names: each group, then what is in it."""
    found: dict[str, Setting] = {}
    for name, setting in settings_of(kind).items():
        found[name] = setting
        if setting.group is not None:
            found |= {f"{name}.{inner}": part for inner, part in settings_of(setting.group).items()}
    return found


def with_settings(config: C, values: Mapping[str, Any]) -> C:
    """The configuration with other values, by dotted names; a group that was left out gets its defaults."""
    for name, value in values.items():
        top, _, inner = name.partition(".")
        group = settings_of(type(config))[top].group if inner else None
        whole = value if group is None else replace(getattr(config, top) or group(), **{inner: value})
        config = replace(config, **{top: whole})
    return config


def members(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def docs_of(kind: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass and its bases, by name."""
    return _docs_of(kind)


@cache
def _docs_of(kind: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def as_data(config: object) -> dict[str, Any]:
    """A configuration as YAML has it: groups by name, and a rule by its class and its settings."""
    left_out = config.kept_elsewhere if isinstance(config, Config) else ()
    settings = [setting for name, setting in settings_of(type(config)).items() if name not in left_out]
    return {s.name: _plain(getattr(config, s.name), holds_rules(s.kind)) for s in settings}


def holds_rules(kind: Any) -> bool:
    """Whether a type is that of a list of rules."""
    return any(Rule in get_args(part) for part in members(kind))


def rule_as_data(rule: object) -> dict[str, Any]:
    """A rule as plain data, e.g. `{"class_path": "attention_transfer.Copy", "init_args": {"parts": "qk", …}}`."""
    kind = type(rule)
    own = kind.__module__.startswith("attention_transfer.transfer.")
    module = "attention_transfer" if own else kind.__module__
    settings = {f.name: _plain(getattr(rule, f.name)) for f in fields(kind)}  # type: ignore[arg-type] # a rule is one
    return {"class_path": f"{module}.{kind.__qualname__}", "init_args": settings}


def _plain(value: Any, of_rules: bool = False) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):  # tuples and ranges, too
        return [rule_as_data(part) if of_rules else _plain(part) for part in value]
    return as_data(value) if is_dataclass(value) and not isinstance(value, type) else value


def parts_of(text: str, what: str, problems: list[str]) -> list[str]:
    """What stands between commas; none in empty text. An empty part is a problem."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if "" in parts:
        problems.append(f"{what} is {text!r}, which has an empty part; give values with single commas between them")
    return [part for part in parts if part]


def model_problems(models: Sequence[str]) -> list[str]:
    """A sentence where no model is named, and for each that is named twice."""
    twice = [name for i, name in enumerate(models) if name in models[:i]]
    none = [] if models else ["no model is named; name one or more"]
    return none + [f"{name} is named twice; name each model once" for name in dict.fromkeys(twice)]


def below_one(**counts: int | None) -> list[str]:
    """A sentence for each number of images, by the name of its setting, that is below 1."""
    return [f"{name} is {n}; give at least 1 image" for name, n in counts.items() if n is not None and n < 1]
