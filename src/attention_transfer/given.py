"""What is given for the settings of a verb, by flags and by files: brought to their types, and made a configuration.

Every mistake is found by what is known of the fields, collected, and said at once.
"""

from __future__ import annotations

from dataclasses import MISSING, replace
from typing import Any, get_origin

from attention_transfer.config.base import Config, Setting, holds_rules, members, options_of, settings_of
from attention_transfer.config.values import Misfit, brought, plain_of, short
from attention_transfer.errors import UserError, nearest, raise_all

_LONGEST_HINT = 160


class Given:
    """Values of the settings of a configuration, by dotted names; later ones replace earlier ones.

    Args:
        kind: the configuration.
        words: its settings that are given without a flag.
        problems: what is wrong is added to it, a sentence each.
    """

    def __init__(self, kind: type[Config], words: tuple[str, ...], problems: list[str]) -> None:
        self.kind, self.words, self.problems = kind, words, problems
        self.options = options_of(kind)
        self.wrong: set[str] = set()
        self._values: dict[str, Any] = {}
        self._rules: dict[str, list[dict[str, Any]]] = {}

    def is_known(self, name: str) -> bool:
        """Whether something is of this name: a setting, a list of rules, or an entry of a mapping."""
        top, _, key = name.partition(".")
        maps = bool(key) and top in self.options and _is_map(self.options[top])
        return name in self.options or self.is_rules(name.removesuffix("+")) or maps

    def is_rules(self, name: str) -> bool:
        """Whether a dotted name is that of a list of rules, or of a setting of its last rule."""
        setting = self.options.get(name.partition(".")[0])
        return setting is not None and holds_rules(setting.kind)

    def take(self, name: str, value: Any) -> None:
        """Take one value, by its dotted name; what is wrong with it is noted."""
        setting = self.options.get(name)
        try:
            if self.is_rules(name.removesuffix("+")):
                self._take_rules(name, value)
            elif setting is not None and setting.group is not None:
                self._take_group(name, value)
            elif setting is not None and _is_map(setting) and isinstance(value, str) and "=" in value:
                key, _, text = value.partition("=")
                self.take(f"{name}.{key.strip().replace('-', '_')}", text if text.strip()[:1] == "[" else f"[{text}]")
            elif setting is not None:
                self._values[name] = brought(value, setting.kind, name)
                self.wrong.discard(name)
            else:  # an entry of a mapping
                top, _, key = name.partition(".")
                plain = plain_of(value, name) if isinstance(value, str) else value
                entry = brought({key: plain}, self.options[top].kind, top)
                self._values[top] = {**(self._values.get(top) or {}), **entry}
        except Misfit as error:
            self.problems.append(str(error))
            self.wrong.add(name)

    def _take_group(self, name: str, value: Any) -> None:
        """Settings of a group, by name; or `null`, where it may be left out."""
        value = plain_of(value, name) if isinstance(value, str) else value
        if value is None and self.default_of(name) is None:
            self._values = {key: v for key, v in self._values.items() if not key.startswith(f"{name}.")}
            return
        if not isinstance(value, dict):
            what = repr(value) if isinstance(value, str) else short(value)
            raise Misfit(f"{name} is {what}; give its settings by name, or leave it out")
        for key, part in value.items():
            inner = f"{name}.{key}".replace("-", "_")
            if inner in self.options:
                self.take(inner, part)
            else:
                self.problems.append(f"there is no option {short(inner)!r}; {self.meant(inner)}")

    def _take_rules(self, name: str, value: Any) -> None:
        """`rules` replaces the list, `rules+` adds to it, `rules.weight` sets what its last rule has."""
        top, _, inner = name.removesuffix("+").partition(".")
        if inner:
            key = inner.removeprefix("init_args.")
            if not self._rules.get(top):
                raise Misfit(f"--{short(name)} sets a rule, but none is named before it; add --{top}+=NAME")
            last = self._rules[top][-1]
            if key == "class_path":
                last["class_path"] = value
            else:
                last["init_args"] = {**(last.get("init_args") or {}), key: value}
            return
        value = plain_of(value, name) if isinstance(value, str) else value
        if value is None:
            self._rules.pop(top, None)
            return
        found = value if isinstance(value, list) else [value]
        named = [{"class_path": rule} if isinstance(rule, str) else rule for rule in found]
        if bad := [rule for rule in named if not isinstance(rule, dict)]:
            raise Misfit(f"{top} holds {short(bad[0])}, which is none; name one with its settings")
        self._rules[top] = [*(self._rules.get(top, []) if name.endswith("+") else []), *map(dict, named)]

    def default_of(self, name: str) -> Any:
        """What a setting is where nothing is said of it, which may depend on what is given."""
        plain = {key: value for key, value in self._values.items() if "." not in key}
        try:
            return self.kind.defaults(plain).get(name, self.options[name].default)
        except UserError as error:  # as of a preset that there is not
            self.problems += [] if str(error) in self.problems else [str(error)]
            return self.options[name].default

    def config(self) -> Config:
        """The configuration.

        Raises:
            UserError: something was wrong; what groups find wrong in themselves is listed, too.
        """
        values = {key: value for key, value in self._values.items() if "." not in key}
        for name, setting in self.options.items():
            if setting.group is not None and "." not in name:
                self._make_group(name, setting.group, values)
            elif name not in values and (default := self.default_of(name)) is not setting.default:
                values[name] = default
        for name, data in self._rules.items():
            from attention_transfer.transfer.rule_data import read_rules

            try:
                values[name] = read_rules(data)
            except UserError as error:
                self.problems += str(error).splitlines()
        missing = [
            name
            for name, setting in settings_of(self.kind).items()
            if setting.default is MISSING and name not in {*values, *self.wrong}
        ]
        if missing:
            self.problems.append(f"{' and '.join(missing)} missing; add what is missing, or see --help")
        raise_all(self.problems)
        return self.kind(**values)

    def _make_group(self, name: str, kind: type, values: dict[str, Any]) -> None:
        """Make the record of a group from what is given of it."""
        default = self.default_of(name)
        prefix = f"{name}."
        inner = {key.removeprefix(prefix): v for key, v in self._values.items() if key.startswith(prefix)}
        if not inner and default is None:
            return
        values[name] = made = replace(kind() if default is None else default, **inner)
        if self.problems and isinstance(made, Config):
            self.problems += made.problems()  # where nothing else is wrong, the verb says this itself

    def meant(self, given: str) -> str:
        """Which option was meant: one of another group, a short or a long form, or the nearest."""
        dashes = given.startswith("--")
        valid = [name for name in self.options if dashes is False or name not in self.words]
        options = [f"--{name.replace('_', '-')}" for name in valid] if dashes else valid
        name = _last(given)
        same = [option for option in options if _last(option) == name]
        other = [option for option in options if _initials(_last(option)) == name or _last(option) == _initials(name)]
        if same or other:
            return f"did you mean {' or '.join(map(repr, same or other))}?"
        return close if len(close := nearest(given, options)) <= _LONGEST_HINT else "see --help"


def _is_map(setting: Setting) -> bool:
    """Whether a setting holds lists by name: `--grid lr=1,2` is an entry of it, as `--grid.lr "[1, 2]"` is."""
    return any(get_origin(part) is dict for part in members(setting.kind))


def _last(option: str) -> str:
    return option.rpartition(".")[2].removeprefix("--").replace("_", "-")


def _initials(name: str) -> str:
    """Of a name of several words, e.g. lr of learning-rate."""
    words = name.split("-")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""
