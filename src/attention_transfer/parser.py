"""What is on the command line: a verb, and flags and files that give the fields of its configuration."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from attention_transfer import help_text
from attention_transfer.config.base import Config, Setting, as_data
from attention_transfer.config.files import config_path, read_config
from attention_transfer.config.values import TRUTHS, short
from attention_transfer.errors import UserError, raise_all
from attention_transfer.given import Given
from attention_transfer.places import expanded, same_or_inside
from attention_transfer.verbs import VERBS, Verb, find


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
        _print(help_text.of_verb(verb, command.given.default_of))
    config = command.given.config()
    raise_all([*problems, *command.replaced_files(config)])
    if command.printed:
        import yaml

        _print(yaml.safe_dump(as_data(config), sort_keys=False, allow_unicode=True).rstrip())
    return verb, config


class _Command:
    """The words and files of one command, which give the settings of its verb."""

    def __init__(self, verb: Verb[..., object], problems: list[str]) -> None:
        self.verb, self.problems = verb, problems
        self.given = Given(verb.config, verb.words, problems)
        self.files: list[str] = []
        self.help = self.printed = False

    def read(self, words: Sequence[str]) -> None:
        """Take what the words give, one after the other."""
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
        setting = self.given.options.get(name)
        known = self.given.is_known(name) or name == "config"
        switch = setting is not None and setting.kind is bool  # which may stand before another word
        alone = not left or left[0].startswith("--") or (switch and left[0].lower() not in TRUTHS)
        if not equals and not alone:
            text = left.pop(0)
        elif not equals and setting is not None and (switch or setting.default is False):
            text = "true"
        elif not equals and known:
            self.problems.append(f"{short(flag)} has no value; give one, or leave it out")
            self.given.wrong.add(name)
            return
        top, _, inner = name.partition(".")
        if name == "config":
            self._file(text)
        elif not known or top in self.verb.words:
            self.problems.append(f"there is no option {short(flag)}; {self.given.meant(flag)}")
        elif inner == "help" and self.given.is_rules(top):
            _print(help_text.of_rule(text))
        else:
            self.given.take(name, text)

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
            elif self.given.is_known(name):
                self.given.take(name, value)
            else:
                self.problems.append(f"there is no option {short(key)!r}; {self.given.meant(key)}")

    def _loose(self, words: list[str]) -> None:
        """Words without a flag, for the settings that take them: as the verb sorts them, or in order.

        The last setting may take many.
        """
        try:
            by_kind = self.verb.config.sorted_words(words)
        except UserError as error:
            self.problems.append(str(error))
            self.given.wrong |= {*self.verb.words}
            return
        if by_kind is not None:
            for name, sorted_ in by_kind.items():
                if sorted_:
                    self.given.take(name, sorted_)
            return
        for name in self.verb.words:
            if not words:
                break
            if _holds_many(self.given.options[name]):
                self.given.take(name, words)
                words = []
            else:
                self.given.take(name, words.pop(0))
        self.problems += [f"{short(word)} is one argument too many; see --help" for word in words]

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


def _holds_many(setting: Setting) -> bool:
    """Whether a setting takes any number of words."""
    return str(setting.kind).startswith("list[")


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


def _print(text: str) -> NoReturn:
    print(text)
    sys.exit(0)
