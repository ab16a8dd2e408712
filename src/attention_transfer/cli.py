"""The command line: each verb is a typed function, and its flags are the function's parameters."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import FrameType
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from rich.logging import RichHandler
from rich.markup import escape

from attention_transfer.data import inspect_data
from attention_transfer.errors import UserError, nearest, raise_all
from attention_transfer.evaluation import doctor, ensemble, export, predict
from attention_transfer.experiments import bench, compare, demo
from attention_transfer.places import expanded, same_or_inside
from attention_transfer.training import Interrupted, Recipe, console, presets, pretrain, read_config, train
from attention_transfer.transfer import PRESETS

VERBS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "data": inspect_data,
    "pretrain": pretrain,
    "train": train,
    "compare": compare,
    "predict": predict,
    "export": export,
    "ensemble": ensemble,
    "doctor": doctor,
    "bench": bench,
    "presets": presets,
}

GOES_ON = ("demo", "pretrain", "train", "compare")
"""Verbs that, given again, go on where they were stopped."""

_SHOW_CURSOR = b"\x1b[?25h"

RULES = ("Copy", "Distill", "Guide", "LogitKD", "FeatureKD", "L2SP", "BSS")


class Parser(ArgumentParser):
    """Says what is wrong in a sentence, and names the nearest option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        """Leave with the user's error, without usage and traceback."""
        raise UserError(_sentence(message, self._options(message)))

    def _options(self, message: str) -> list[str]:
        """The options to choose from: of the verb that the message names, or else the parser's own."""
        verb = re.search(r"Subcommand '(\w+)'", message)
        parser = self._subcommands_action._name_parser_map[verb[1]] if verb and self._subcommands_action else self
        return [option for action in parser._actions for option in action.option_strings]


def build_parser(arguments: Sequence[str] = ()) -> ArgumentParser:
    """The parser; with `--preset` among the arguments, the help of `train` shows that preset's own recipe."""
    parser = Parser(
        prog="attention-transfer", description="Transfer the attention of a pre-trained vision transformer."
    )
    verbs = parser.add_subcommands(required=True, dest="verb")
    for name, verb in VERBS.items():
        summary = (verb.__doc__ or "").split("\n", 1)[0]
        sub = Parser(prog=f"attention-transfer {name}", description=summary)
        sub.add_argument(
            "--config", action=ActionConfigFile, help="YAML file with values of any flags; it may extend another"
        )
        if verb is train:
            sub.add_function_arguments(verb, skip={"recipe"})
            sub.add_class_arguments(Recipe, "recipe")
            chosen = PRESETS.get(_preset(arguments), PRESETS["distill"])
            sub.set_defaults({f"recipe.{key}": value for key, value in chosen.recipe.items()})
        elif verb is predict:
            sub.add_function_arguments(verb, skip={"images"}, as_positional=True)
            sub.add_argument("images", type=str, nargs="+", help="image files, folders, or quoted patterns")
        elif verb is ensemble:
            sub.add_function_arguments(verb, skip={"runs"}, as_positional=True)
            sub.add_argument("runs", type=str, nargs="+", help="folders of finished runs of train, at least two")
        elif verb is doctor:
            sub.add_function_arguments(verb, skip={"student"}, as_positional=True)
            sub.add_argument("student", type=str | None, nargs="?", help="another model, or standard")
        elif verb in (inspect_data, export):
            sub.add_function_arguments(verb, as_positional=True)
        else:
            sub.add_function_arguments(verb)
        _as_people_type(sub)
        verbs.add_subcommand(name, sub, help=summary)
    return parser


def run(arguments: Sequence[str]) -> None:
    """Parse and call a verb."""
    configs = _configs(arguments)
    arguments = _with_configs(arguments)
    parser = build_parser(arguments)
    settings: Namespace = parser.parse_args(arguments)
    try:
        chosen = parser.instantiate(settings)
    except UserError:
        raise
    except ValueError as error:  # the parser's wrapping of what a class said about its own values
        raise UserError(_sentence(str(error), [])) from error
    values = {key: value for key, value in vars(chosen[chosen.verb]).items() if key != "config"}
    out = values.get("out")
    if out and values.get("overwrite"):
        raise_all(
            [
                f"{path} is read, and would be replaced in {out}; copy it to another place first"
                for path in configs
                if same_or_inside(expanded(path), expanded(out))
            ]
        )
    VERBS[chosen.verb](**values)


def main() -> NoReturn:
    """Entry point: 0 done, 2 wrong input or a full disk (a sentence says what), 130 stopped by Ctrl-C."""
    handler = RichHandler(console=console, show_path=False, show_time=False, show_level=False)
    handler.setLevel(logging.INFO)
    log = logging.getLogger("attention_transfer")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    goes_on = any(verb in GOES_ON for verb in sys.argv[1:2])
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, _stop)
    try:
        run(sys.argv[1:])
    except UserError as error:
        _print_error(str(error))
        sys.exit(2)
    except OSError as error:  # a disk that fills up, a folder that goes away
        then = "the same command goes on" if goes_on else "give the command again"
        _print_error(f"{_in_words(error)}, then {then}")
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt):
        console.print("stopped; the same command goes on from the last checkpoint" if goes_on else "stopped")
        sys.exit(130)
    sys.exit(0)


def _stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    """The first Ctrl-C ends the work, and takes away what is half-written; the second ends the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if console.is_terminal:
        os.write(sys.stderr.fileno(), _SHOW_CURSOR)  # which a bar hides; the second leaves no time for it
    raise KeyboardInterrupt


def _in_words(error: OSError) -> str:
    """What is wrong with a disk, and what to do."""
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{place}the disk is full; make space"
    return f"{place}{error.strerror or error}; mend that"


def _print_error(message: str) -> None:
    # Escaped: paths and values may hold brackets, which rich would take for styles.
    console.print(f"[bold red]error:[/bold red] {escape(message)}", highlight=False, soft_wrap=True)


def _as_people_type(parser: ArgumentParser) -> None:
    """Let switches stand alone (`--overwrite`), and words be joined by dashes (`--image-size`) or underscores."""
    for action in parser._actions:
        if action.default is False:
            action.nargs, action.const = "?", True
        for option in [o for o in action.option_strings if "_" in o and o != "--print_config"]:
            dashed = option.replace("_", "-")
            action.option_strings[action.option_strings.index(option)] = dashed
            parser._option_string_actions[dashed] = action


def _with_configs(arguments: Sequence[str]) -> list[str]:
    """The arguments, in which configuration files are replaced by their content, with what they extend."""
    words: list[str] = []
    for argument in arguments:
        if words and words[-1] == "--config":
            words[-1] = f"--config={_inline(argument)}"
        elif argument.startswith("--config="):
            words.append(f"--config={_inline(argument.partition('=')[2])}")
        else:
            words.append(argument)
    return words


def _configs(arguments: Sequence[str]) -> list[str]:
    """The configuration files that are named."""
    pairs = pairwise([*arguments, ""])
    return [b if a == "--config" else a.partition("=")[2] for a, b in pairs if a.partition("=")[0] == "--config"]


def _inline(path: str) -> str:
    return json.dumps(read_config(path), default=str)  # YAML has dates, JSON has not


def _preset(arguments: Sequence[str]) -> str:
    """The preset that is meant: by its flag, or else by the last configuration that names one."""
    if named := _value_of("--preset", arguments):
        return named
    configs = [json.loads(a.partition("=")[2]) for a in arguments if a.startswith("--config={")]
    return next((str(config["preset"]) for config in reversed(configs) if "preset" in config), "")


def _value_of(flag: str, arguments: Sequence[str]) -> str:
    for argument, following in pairwise([*arguments, ""]):
        if argument == flag:
            return following
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return ""


def _meant(given: str, options: list[str]) -> str:
    """Which option was meant: one of another group, or of which it is the short or the long form, or the nearest."""
    name = _last(given)
    same = [option for option in options if _last(option) == name]
    short = [option for option in options if _initials(_last(option)) == name or _last(option) == _initials(name)]
    return f"did you mean {' or '.join(map(repr, same or short))}?" if same or short else nearest(given, options)


def _last(option: str) -> str:
    return option.rpartition(".")[2].removeprefix("--").replace("_", "-")


def _initials(name: str) -> str:
    """Of a name of several words, e.g. lr of learning-rate."""
    words = name.split("-")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def _sentence(message: str, options: list[str]) -> str:
    """The parser's message in one line; an unknown option or verb gets the nearest valid one."""
    text = re.sub(r"\s+", " ", message).strip()
    key = re.search(r'[Pp]arser key "([\w.]+)"', text)
    # A value that may be of several types fails once for each; "may be left out" is not what the user did wrong.
    reasons = [e for e in re.findall(r"^\s*- (.+)$", message, re.MULTILINE) if "NoneType" not in e] or [text]
    if unknown := re.search(r"[Uu]nrecognized arguments: (--[\w.-]+)", text):
        return f"there is no option {unknown[1]}; {_meant(unknown[1], options)}"
    if (verb := re.search(r"invalid choice: '?([\w-]+)'?", text)) and verb[1] not in VERBS:
        return f"there is no verb {verb[1]!r}; {nearest(verb[1], VERBS)}"
    if rule := re.search(r"Expected a dot import path string: ([\w.]+)", text):
        return f"there is no rule {rule[1]!r}; {nearest(rule[1], RULES)}"
    if 'expected "verb"' in text:
        return f"name a verb: {', '.join(VERBS)}"
    if missing := re.search(r"following arguments are required: (.+)", text):
        names = [name.rpartition(".")[2] for name in missing[1].split(", ")]
        return f"{' and '.join(names)} missing; add what is missing, or see --help"
    if unknown := re.search(r"accept option '(.+?)'|Option '(.+?)' is not accepted|Key '(.+?)' is not ex", reasons[0]):
        name = unknown[1] or unknown[2] or unknown[3]
        return f"there is no option {name!r}; {_meant(name, [o.removeprefix('--') for o in options if o != '-h'])}"
    if len(reasons) == 1 and (choices := re.search(r"Expected a typing\.Literal\[(.+?)\]", reasons[0])):
        given = re.findall(r"(?:Got|Given) value: (\S+)", text)[0]
        name = re.findall(r'[Pp]arser key "([\w.]+)"', text)[-1]
        valid = re.findall(r"'([^']+)'", choices[1])
        return f"{name} is {given!r}; {nearest(given, valid)}"
    value = re.search(r"(?:Got|Given) value: (.+?)$", text)
    types = re.findall(r"Expected an? <class '(?:[\w.]+\.)?(\w+)'>", " ".join(reasons))
    if key and value and types == ["list"]:
        return f'{key[1]} is {value[1]}; give a list in quoted brackets, such as "[{value[1]}]"'
    if key and value and types:
        return f"{key[1]} is {value[1]}; give a value of type {' or '.join(types)}"
    return f"{key[1]}: {reasons[0]}" if key and reasons[0] != text else reasons[0]


if __name__ == "__main__":
    main()
