"""What is on the command line: a verb, and flags and files that give the fields of its configuration.

Every mistake is found by what is known of the fields, collected, and said at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import MISSING, replace
from typing import Any, NoReturn, get_origin

from attention_transfer import help_text
from attention_transfer.config.base import Config, Setting, as_data, holds_rules, members, options_of, settings_of
from attention_transfer.config.files import config_path, read_config
from attention_transfer.config.values import TRUTHS, Misfit, brought, plain_of, short
from attention_transfer.errors import UserError, nearest, raise_all
from attention_transfer.places import expanded, same_or_inside
from attention_transfer.verbs import VERBS, Verb, find

_LONGEST_HINT = 160


def parse(arguments: Sequence[str]) -> tuple[Verb[..., object], Config]:
    """The verb that is called, and its configuration.

    Raises:
        UserError: something is unknown, empty or of another type; every such mistake is listed.
        SystemExit: help, the version or the configuration was asked for, and is printed.
    """
    problems: list[str] = []
    words = _without_empty(arguments, problems)
    if words[:1] in (["-h"], ["--help"]):
        _print(help_text.of_all())
    if words[:1] == ["--version"]:
        _print(help_text.version())
    if not words or words[0].startswith("-"):
        raise UserError(f"name a verb: {', '.join(VERBS)}")
    verb = find(words[0])
    command = _Command(verb, problems)
    command.read(words[1:])
    if command.help:
        _print(help_text.of_verb(verb, command.default_of))
    config = command.config()
    raise_all([*problems, *command.replaced_files(config)])
    if command.printed:
        import yaml

        _print(yaml.safe_dump(as_data(config), sort_keys=False, allow_unicode=True).rstrip())
    return verb, config


class _Command:
    """The words and files of one command, as values of its verb's settings."""

    def __init__(self, verb: Verb[..., object], problems: list[str]) -> None:
        self.verb, self.kind, self.problems = verb, verb.config, problems
        self.options = options_of(self.kind)
        self.given: dict[str, Any] = {}
        self.rules: dict[str, list[dict[str, Any]]] = {}
        self.wrong: set[str] = set()
        self.files: list[str] = []
        self.help = self.printed = False

    def read(self, words: Sequence[str]) -> None:
        """Take what the words give, one after the other; later ones replace earlier ones."""
        loose: list[str] = []
        left = list(words)
        while left:
            word = left.pop(0)
            if word == "--":
                loose += left
                break
            if word in ("-h", "--help"):
                self.help = True
            elif word.startswith("--"):
                self._flag(word, left)
            else:
                loose.append(word)
        self._loose(loose)

    def _flag(self, word: str, left: list[str]) -> None:
        flag, equals, text = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if name == "print_config":
            self.printed = True
            return
        setting = self.options.get(name)
        known = self._is_known(name) or name == "config"
        switch = setting is not None and setting.kind is bool  # which may stand before another word
        alone = not left or left[0].startswith("--") or (switch and left[0].lower() not in TRUTHS)
        if not equals and not alone:
            text = left.pop(0)
        elif not equals and setting is not None and (switch or setting.default is False):
            text = "true"
        elif not equals and known:
            self.problems.append(f"{short(flag)} has no value; give one, or leave it out")
            self.wrong.add(name)
            return
        if name == "config":
            self._file(text)
        elif not known or name.partition(".")[0] in self.verb.words:
            self.problems.append(f"there is no option {short(flag)}; {self._meant(flag)}")
        else:
            self._take(name, text)

    def _file(self, path: str) -> None:
        """Take what a configuration file gives."""
        self.files.append(path)
        try:
            content = read_config(path)
        except UserError as error:
            self.problems += str(error).splitlines()
            return
        for key, value in content.items():
            name = key.replace("-", "_")
            if not key:
                self.problems.append("a name in the configuration is empty; give it one, or leave it out")
            elif key == "config":
                self.problems.append("there is no option 'config' in a configuration; it may say `extends`")
            elif self._is_known(name):
                self._take(name, value)
            else:
                self.problems.append(f"there is no option {short(key)!r}; {self._meant(key)}")

    def _loose(self, words: list[str]) -> None:
        """Words without a flag, for the settings that take them: as the verb sorts them, or in order.

        The last setting may take many.
        """
        try:
            by_kind = self.kind.sorted_words(words)
        except UserError as error:
            self.problems.append(str(error))
            self.wrong |= {*self.verb.words}
            return
        if by_kind is not None:
            for name, sorted_ in by_kind.items():
                if sorted_:
                    self._take(name, sorted_)
            return
        for name in self.verb.words:
            if not words:
                break
            if holds_many(self.options[name]):
                self._take(name, words)
                words = []
            else:
                self._take(name, words.pop(0))
        self.problems += [f"{short(word)} is one argument too many; see --help" for word in words]

    def _take(self, name: str, value: Any) -> None:
        """Take one value, by its dotted name; what is wrong with it is noted."""
        setting = self.options.get(name)
        try:
            if self._is_rules(name.removesuffix("+")):
                self._take_rules(name, value)
            elif setting is not None and setting.group is not None:
                self._take_group(name, value)
            elif setting is not None and is_map(setting) and isinstance(value, str) and "=" in value:
                key, _, text = value.partition("=")
                self._take(f"{name}.{key.strip().replace('-', '_')}", text if text.strip()[:1] == "[" else f"[{text}]")
            elif setting is not None:
                self.given[name] = brought(value, setting.kind, name)
                self.wrong.discard(name)
            else:  # an entry of a mapping
                top, _, key = name.partition(".")
                plain = plain_of(value, name) if isinstance(value, str) else value
                entry = brought({key: plain}, self.options[top].kind, top)
                self.given[top] = {**(self.given.get(top) or {}), **entry}
        except Misfit as error:
            self.problems.append(str(error))
            self.wrong.add(name)

    def _take_group(self, name: str, value: Any) -> None:
        """Settings of a group, by name; or `null`, where it may be left out."""
        value = plain_of(value, name) if isinstance(value, str) else value
        if value is None and self.default_of(name) is None:
            self.given = {key: v for key, v in self.given.items() if not key.startswith(f"{name}.")}
            return
        if not isinstance(value, dict):
            what = repr(value) if isinstance(value, str) else short(value)
            raise Misfit(f"{name} is {what}; give its settings by name, or leave it out")
        for key, part in value.items():
            inner = f"{name}.{key}".replace("-", "_")
            if inner in self.options:
                self._take(inner, part)
            else:
                self.problems.append(f"there is no option {short(inner)!r}; {self._meant(inner)}")

    def _is_known(self, name: str) -> bool:
        """Whether something is of this name: a setting, a list of rules, or an entry of a mapping."""
        top, _, key = name.partition(".")
        maps = bool(key) and top in self.options and is_map(self.options[top])
        return name in self.options or self._is_rules(name.removesuffix("+")) or maps

    def _is_rules(self, name: str) -> bool:
        """Whether a dotted name is that of a list of rules, or of a setting of its last rule."""
        setting = self.options.get(name.partition(".")[0])
        return setting is not None and holds_rules(setting.kind)

    def _take_rules(self, name: str, value: Any) -> None:
        """`rules` replaces the list, `rules+` adds to it, `rules.weight` sets what its last rule has."""
        top, _, inner = name.removesuffix("+").partition(".")
        if inner == "help":
            _print(help_text.of_rule(str(value)))
        if inner:
            key = inner.removeprefix("init_args.")
            if not self.rules.get(top):
                raise Misfit(f"--{short(name)} sets a rule, but none is named before it; add --{top}+=NAME")
            last = self.rules[top][-1]
            if key == "class_path":
                last["class_path"] = value
            else:
                last["init_args"] = {**(last.get("init_args") or {}), key: value}
            return
        value = plain_of(value, name) if isinstance(value, str) else value
        if value is None:
            self.rules.pop(top, None)
            return
        found = value if isinstance(value, list) else [value]
        named = [{"class_path": rule} if isinstance(rule, str) else rule for rule in found]
        if bad := [rule for rule in named if not isinstance(rule, dict)]:
            raise Misfit(f"{top} holds {short(bad[0])}, which is none; name one with its settings")
        self.rules[top] = [*(self.rules.get(top, []) if name.endswith("+") else []), *map(dict, named)]

    def default_of(self, name: str) -> Any:
        """What a setting is where nothing is said of it, which may depend on what is given."""
        plain = {key: value for key, value in self.given.items() if "." not in key}
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
        values = {key: value for key, value in self.given.items() if "." not in key}
        for name, setting in self.options.items():
            if setting.group is not None and "." not in name:
                self._group(name, setting.group, values)
            elif name not in values and (default := self.default_of(name)) is not setting.default:
                values[name] = default
        for name, data in self.rules.items():
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

    def _group(self, name: str, kind: type, values: dict[str, Any]) -> None:
        """Make the record of a group from what is given of it."""
        default = self.default_of(name)
        prefix = f"{name}."
        inner = {key.removeprefix(prefix): v for key, v in self.given.items() if key.startswith(prefix)}
        if not inner and default is None:
            return
        values[name] = made = replace(kind() if default is None else default, **inner)
        if self.problems and isinstance(made, Config):
            self.problems += made.problems()  # where nothing else is wrong, the verb says this itself

    def replaced_files(self, config: Config) -> list[str]:
        """Which configuration files lie in what the verb would replace, a sentence each."""
        out = getattr(config, "out", None)
        if not (out and getattr(config, "overwrite", False)):
            return []
        return [
            f"{path} is read, and would be replaced in {out}; copy it to another place first"
            for path in self.files
            if same_or_inside(expanded(config_path(path)), expanded(out))
        ]

    def _meant(self, given: str) -> str:
        """Which option was meant: one of another group, a short or a long form, or the nearest."""
        dashes = given.startswith("--")
        valid = [name for name in self.options if dashes is False or name not in self.verb.words]
        options = [f"--{name.replace('_', '-')}" for name in valid] if dashes else valid
        name = _last(given)
        same = [option for option in options if _last(option) == name]
        other = [option for option in options if _initials(_last(option)) == name or _last(option) == _initials(name)]
        if same or other:
            return f"did you mean {' or '.join(map(repr, same or other))}?"
        return close if len(close := nearest(given, options)) <= _LONGEST_HINT else "see --help"


def holds_many(setting: Setting) -> bool:
    """Whether a setting takes any number of words."""
    return str(setting.kind).startswith("list[")


def is_map(setting: Setting) -> bool:
    """Whether a setting holds lists by name: `--grid lr=1,2` is an entry of it, as `--grid.lr "[1, 2]"` is."""
    return any(get_origin(part) is dict for part in members(setting.kind))


def _without_empty(arguments: Sequence[str], problems: list[str]) -> list[str]:
    """The arguments but those that are empty, as a shell's variable that is not set, with the flags before them."""
    words: list[str] = []
    for argument in arguments:
        flag, _, value = argument.partition("=")
        if argument.strip() and not (flag.startswith("--") and "=" in argument and not value.strip()):
            words.append(argument)
            continue
        name = flag if flag.strip() else words.pop() if words and words[-1].startswith("--") else "an argument"
        problems.append(f"{name} is empty; give a value, or leave it out")
    return words


def _last(option: str) -> str:
    return option.rpartition(".")[2].removeprefix("--").replace("_", "-")


def _initials(name: str) -> str:
    """Of a name of several words, e.g. lr of learning-rate."""
    words = name.split("-")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def _print(text: str) -> NoReturn:
    print(text)
    sys.exit(0)
