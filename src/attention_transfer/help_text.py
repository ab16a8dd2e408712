"""What `--help` and `--version` print, from the verbs, their fields and the docstrings of both."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, is_dataclass
from typing import Any, Literal, get_args, get_origin

from attention_transfer.config.base import Setting, docs_of, holds_rules, members, settings_of
from attention_transfer.verbs import VERBS, Verb, of_other_packages

_LINK = re.compile(r"\[`([^]`]+)`\]\[[^]]*\]")

_OF_ALL = {
    "-h, --help": "show this and exit",
    "--config FILE": "YAML file with values of any flags; it may extend another; recipe:NAME is one of the published",
    "--print_config": "print the configuration that the command amounts to, and exit",
    "-v, --verbose": "say everything that log.txt has on the terminal, too",
}


def of_all() -> str:
    """The verbs, a line each."""
    verbs = {**VERBS, **of_other_packages()}
    lines = ["Usage: attention-transfer VERB [flags]", ""]
    lines += ["Transfer the attention of a pre-trained vision transformer.", ""]
    lines += _columns({name: verb.summary for name, verb in verbs.items()})
    return "\n".join([*lines, "", "attention-transfer VERB --help shows its flags; --version shows the version."])


def version() -> str:
    """The name and version of the package."""
    from importlib.metadata import version as version_of

    return f"attention-transfer {version_of('attention-transfer')}"


def of_verb(verb: Verb[..., object], group_default: Callable[[str], Any]) -> str:
    """What a verb does, and its flags with their types and defaults.

    Args:
        verb: the verb.
        group_default: what a group of settings is where nothing is said of it, by the group's name.
    """
    loose = " ".join(name.upper() for name in verb.words)
    lines = [f"Usage: attention-transfer {verb.name} {loose + ' ' if loose else ''}[flags]", ""]
    lines += _wrapped(str(verb.__doc__).split("\n\nReturns:", 1)[0])
    if verb.words:
        docs = docs_of(verb.config)
        lines += ["", *_columns({name.upper(): docs[name] for name in verb.words})]
    lines += ["", "Flags:", *_columns(_OF_ALL)]
    for name, setting in settings_of(verb.config).items():
        if name not in verb.words:
            lines += _flags(name, setting, docs_of(verb.config)[name], group_default)
    return "\n".join(lines)


def _flags(name: str, setting: Setting, doc: str, group_default: Callable[[str], Any]) -> Iterator[str]:
    """The lines of one setting, or of a group."""
    if holds_rules(setting.kind):
        from attention_transfer.transfer.rules import names

        known = f"{doc} One of {', '.join(names())}; --{name}.help NAME shows its settings."
        yield from _columns({f"--{name}+=NAME --{name}.SETTING=VALUE": known})
    elif setting.group is None:
        yield from _columns({_flag(name, setting): _doc(doc, setting.default)})
    else:
        default, docs = group_default(name), docs_of(setting.group)
        yield from ["", *_wrapped(f"{name}: {doc}")]
        for inner, part in settings_of(setting.group).items():
            value = part.default if default is None else getattr(default, inner)
            yield from _columns({_flag(f"{name}.{inner}", part): _doc(docs.get(inner, ""), value)})


def of_rule(name: str) -> str:
    """The settings of a rule.

    Raises:
        UserError: there is none of that name.
    """
    from attention_transfer.transfer.rule_data import find_rule

    kind = find_rule(name)
    lines = _wrapped(textwrap.dedent(f"    {kind.__doc__}"))
    if is_dataclass(kind):
        settings = {f"--rules.{key}": setting for key, setting in settings_of(kind).items()}
        lines += ["", *_columns({_flag(key[2:], s): _doc("", s.default) for key, s in settings.items()})]
    return "\n".join(lines)


def _flag(name: str, setting: Setting) -> str:
    flag = f"--{name.replace('_', '-')}"
    return flag if setting.kind is bool else f"{flag} {type_words(setting.kind)}"


def type_words(kind: Any) -> str:
    """A type as people say it, e.g. `INT|auto`."""
    words: list[str] = []
    for part in members(kind):
        if get_origin(part) is Literal:
            words += map(str, get_args(part))
        elif part is not type(None):
            words.append(getattr(get_origin(part) or part, "__name__", str(part)).upper())
    return "|".join(words)


def _doc(doc: str, default: Any) -> str:
    shown = "" if default is MISSING or default is None or default == "" else f"(default {default_words(default)})"
    return " ".join(filter(None, (_LINK.sub(r"\1", doc), shown)))


def default_words(value: Any) -> str:
    """A default as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _wrapped(text: str) -> list[str]:
    width = min(shutil.get_terminal_size().columns, 120)
    paragraphs = (textwrap.wrap(part, width, break_long_words=False) or [""] for part in text.split("\n\n"))
    return [line for number, part in enumerate(paragraphs) for line in ([""] * bool(number) + part)]


def _columns(rows: dict[str, str]) -> list[str]:
    """Terms on the left, what they mean on the right, or below where a term is long."""
    width, left = max(40, min(shutil.get_terminal_size().columns, 120)), 26
    lines = []
    for term, meaning in rows.items():
        wrapped = textwrap.wrap(meaning, width - left, break_long_words=False) or [""]
        beside = len(term) + 4 <= left
        lines.append(f"  {term:{left - 2}}{wrapped[0]}" if beside else f"  {term}")
        lines += [" " * left + line for line in wrapped[beside:]]
    return [line.rstrip() for line in lines]
