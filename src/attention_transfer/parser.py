"""What is on the command line: each verb is a typed function, and its flags are the function's parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from attention_transfer.data import inspect_data
from attention_transfer.errors import UserError, UserErrors, nearest, raise_all
from attention_transfer.evaluation import doctor, ensemble, export, predict
from attention_transfer.experiments import bench, compare, demo
from attention_transfer.places import expanded, same_or_inside
from attention_transfer.training import Recipe, foreign_classes, presets, pretrain, read_config, train
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


class _Mistake(UserError):
    """One mistake, of the option or key of this name; `None` where it has none."""

    def __init__(self, message: str, key: str | None) -> None:
        super().__init__(message)
        self.key = key


class Parser(ArgumentParser):
    """Says what is wrong in a sentence, and names the nearest option."""

    verbs: dict[str, Parser]

    def error(self, message: str, ex: BaseException | None = None) -> NoReturn:
        """Leave with the user's error, without usage and traceback."""
        key = _key(message)
        while key == "config" and ex is not None:  # what is wrong is in the configuration, and was said before
            if isinstance(ex, _Mistake):
                raise ex
            ex = ex.__cause__ or ex.__context__
        raise _Mistake(_sentence(message, self._options(message)), key)

    def _options(self, message: str) -> list[str]:
        """The options to choose from: of the verb that the message names, or else the parser's own."""
        verb = re.search(r"Subcommand '(\w+)'", message)
        parser = self.verbs[verb[1]] if verb else self
        return [option for action in parser._actions for option in action.option_strings if option not in _OF_PARSER]


def build_parser(arguments: Sequence[str] = ()) -> Parser:
    """The parser; with `--preset` among the arguments, the help of `train` shows that preset's own recipe."""
    parser = Parser(
        prog="attention-transfer", description="Transfer the attention of a pre-trained vision transformer."
    )
    verbs, parser.verbs = parser.add_subcommands(required=True, dest="verb"), {}
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
        parser.verbs[name] = sub
        verbs.add_subcommand(name, sub, help=summary)
    return parser


def parse(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The verb that is called, and its parameters.

    Raises:
        UserError: something is unknown, empty or of another type; every such mistake is listed.
    """
    problems: list[str] = []
    words = _with_configs(_without_empty(arguments, problems), problems)
    while True:
        try:
            found = _parsed(words)
        except _Mistake as mistake:
            left = _without(words, mistake.key)
            if mistake.key is not None or not problems:  # else it may be none but for what was taken out here
                problems.append(str(mistake))
            if left == words:
                raise UserErrors(problems) from mistake
            words = left
        else:
            recipe = found[1].get("recipe")
            if problems and isinstance(recipe, Recipe):  # a verb without mistakes says this itself
                problems += recipe.problems()
            raise_all([*problems, *_replaced_configs(arguments, found[1])])
            return found


def _parsed(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The same.

    Raises:
        _Mistake: the first that is found.
    """
    parser = build_parser(words)
    verb = parser.verbs.get(words[0]) if words else None
    for config in [*_configs(words), *_classes(words)]:
        _check_groups(config, verb)
    try:
        settings: Namespace = parser.parse_args(list(words))
        chosen = parser.instantiate(settings)
    except _Mistake:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        # What a class says of its own values, wrapped by the parser; or a fault of the parser's, which takes all input.
        raise _Mistake(_sentence(str(error), []), _key(str(error))) from error
    return chosen.verb, {key: value for key, value in vars(chosen[chosen.verb]).items() if key != "config"}


def _check_groups(config: dict[str, Any], verb: Parser | None) -> None:
    """Refuse what the parser would take for settings of a group, or for a class, and stumble over."""
    options = [] if verb is None else [o.removeprefix("--") for a in verb._actions for o in a.option_strings]
    groups = {option.partition(".")[0] for option in options if "." in option and not option.endswith(".help")}
    for name in sorted(groups & config.keys()):
        if not isinstance(config[name], dict):
            raise _Mistake(f"{name} is {_short(config[name])}; give its settings by name, or leave it out", name)
    for name in [name for name in ("rules", "pairing") if name in options and name in config]:
        if foreign := foreign_classes({name: config[name]}):
            raise _Mistake("\n".join(foreign), name)
    if "config" in config:
        raise _Mistake("there is no option 'config' in a configuration; it may say `extends`", "config")


def _classes(words: Sequence[str]) -> list[dict[str, Any]]:
    """What flags say of objects of classes, in the form of configurations."""
    found = []
    for word, following in pairwise([*words, ""]):
        flag, _, text = word.partition("=")
        name, _, part = flag.removeprefix("--").rstrip("+").partition(".")
        if name in ("rules", "pairing") and part in ("", "class_path", "help"):
            found.append({name: _plain(text if "=" in word else following)})
    return found


def _plain(text: str) -> Any:
    """A value as the parser reads it: YAML, or text."""
    try:
        return yaml.safe_load(text) if text[:1] in ("[", "{") else text
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError):
        return None  # the parser says what is wrong


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


def _without(words: Sequence[str], key: str | None) -> list[str]:
    """The arguments without an option or a key of configurations, and without what belongs to it."""
    left: list[str] = []
    dropping = False  # the value that follows an option
    for word in words:
        name = re.split(r"\+?=|\+$", word.removeprefix("--"))[0].replace("-", "_")
        is_option = word.startswith("--")
        if not is_option and dropping:
            dropping = False
        elif key is not None and is_option and f"{name}.".startswith(f"{key.replace('-', '_')}."):
            dropping = "=" not in word
        else:
            left.append(_without_key(word, key) if word.startswith(_CONFIG) and key is not None else word)
            dropping = False
    return left


def _without_key(word: str, key: str) -> str:
    config = json.loads(word.removeprefix("--config="))
    *groups, last = key.split(".")
    place = config
    for group in groups:
        place = place.get(group) if isinstance(place, dict) else None
    if isinstance(place, dict):
        place.pop(last, None)
    config.pop(key, None)
    return f"--config={json.dumps(config)}"


_OF_PARSER = ("-h", "--help", "--config", "--print_config")
_CONFIG = "--config={"  # in place of the name of a file, its content


def _configs(words: Sequence[str]) -> list[dict[str, Any]]:
    return [json.loads(word.removeprefix("--config=")) for word in words if word.startswith(_CONFIG)]


def _as_people_type(parser: ArgumentParser) -> None:
    """Let switches stand alone (`--overwrite`), and words be joined by dashes (`--image-size`) or underscores."""
    for action in parser._actions:
        if action.default is False:
            action.nargs, action.const = "?", True
        for option in [o for o in action.option_strings if "_" in o and o != "--print_config"]:
            dashed = option.replace("_", "-")
            action.option_strings[action.option_strings.index(option)] = dashed
            parser._option_string_actions[dashed] = action


def _with_configs(arguments: Sequence[str], problems: list[str]) -> list[str]:
    """The arguments, in which configuration files are replaced by their content, with what they extend."""
    words: list[str] = []
    for argument in arguments:
        file = argument if words and words[-1] == "--config" else argument.removeprefix("--config=")
        if file == argument and words[-1:] != ["--config"]:
            words.append(argument)
            continue
        if file is argument:
            words.pop()
        try:
            words.append(f"--config={json.dumps(read_config(file), default=str)}")  # YAML has dates, JSON has not
        except UserError as error:
            problems.append(str(error))
    return words


def _replaced_configs(arguments: Sequence[str], values: dict[str, Any]) -> list[str]:
    """Which configuration files lie in what a verb would replace, a sentence each."""
    out = values.get("out")
    if not (out and values.get("overwrite")):
        return []
    pairs = pairwise([*arguments, ""])
    files = [b if a == "--config" else a.partition("=")[2] for a, b in pairs if a.partition("=")[0] == "--config"]
    return [
        f"{path} is read, and would be replaced in {out}; copy it to another place first"
        for path in files
        if same_or_inside(expanded(path), expanded(out))
    ]


def _preset(arguments: Sequence[str]) -> str:
    """The preset that is meant: by its flag, or else by the last configuration that names one."""
    if named := _value_of("--preset", arguments):
        return named
    return next((str(config["preset"]) for config in reversed(_configs(arguments)) if "preset" in config), "")


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
    if same or short:
        return f"did you mean {' or '.join(map(repr, same or short))}?"
    return close if len(close := nearest(given, options)) <= 2 * _LONG else "see --help"


def _last(option: str) -> str:
    return option.rpartition(".")[2].removeprefix("--").replace("_", "-")


def _initials(name: str) -> str:
    """Of a name of several words, e.g. lr of learning-rate."""
    words = name.split("-")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def _key(message: str) -> str | None:
    """Which option or key a message of the parser is about."""
    patterns = (
        r'[Pp]arser key "([^"]+)"',
        r"[Uu]nrecognized arguments: --([\w.+-]+)",
        r"accept option '(.+?)'",
        r"^Option '(.+?)' is not accepted",
        r"Key '(.+?)' is not ex",
        r"argument (?:-\w, |-\w/)?--([\w.-]+)",
    )
    found = next((match[1] for pattern in patterns if (match := re.search(pattern, message))), None)
    return found.rstrip("+") if found else None


def _short(value: Any) -> str:
    """A value as a sentence has room for it."""
    text = "empty" if value is None or value == "" else str(value)
    return text if len(text) <= _LONG else f"{text[: _LONG // 2]}…{text[-_LONG // 4 :]}"


_LONG = 80


def _sentence(message: str, options: list[str]) -> str:
    """The parser's message in one line; an unknown option or verb gets the nearest valid one."""
    text = re.sub(r"\s+", " ", message).strip()
    found = re.search(r'[Pp]arser key "([^"]+)"', text)
    key = found[1] if found else None
    # A value that may be of several types fails once for each; "may be left out" is not what the user did wrong.
    reasons = [e for e in re.findall(r"^\s*- (.+)$", message, re.MULTILINE) if "NoneType" not in e] or [text]
    return _of_names(text, reasons[0], options) or _of_a_value(text, key, reasons) or _of_something(key, reasons[0])


def _of_names(text: str, reason: str, options: list[str]) -> str | None:
    """Something that does not exist, or is missing."""
    if unknown := re.search(r"[Uu]nrecognized arguments: (--[\w.+-]+)", text):
        return f"there is no option {unknown[1]}; {_meant(unknown[1], options)}"
    if unknown := re.search(r"[Uu]nrecognized arguments: (.+)", text):
        return f"{_short(unknown[1])} is one argument too many; see --help"
    if (verb := re.search(r"invalid choice: '?([^',(]+)'?", text)) and verb[1] not in VERBS:
        return f"there is no verb {_short(verb[1])!r}; {nearest(verb[1], VERBS)}"
    if valueless := re.search(r"argument (?:-\w, |-\w/)?(--[\w.+-]+): expected", text):
        return f"{valueless[1]} has no value; give one, or leave it out"
    if 'expected "verb"' in text:
        return f"name a verb: {', '.join(VERBS)}"
    if missing := re.search(r"following arguments are required: (.+)", text):
        names = [name.rpartition(".")[2] for name in missing[1].split(", ")]
        return f"{' and '.join(names)} missing; add what is missing, or see --help"
    if "Empty nested key" in text:
        return "a name in the configuration is empty; give it one, or leave it out"
    if unknown := re.search(r"accept option '(.+?)'|Option '(.+?)' is not accepted|Key '(.+?)' is not ex", reason):
        name = unknown[1] or unknown[2] or unknown[3]
        return f"there is no option {name!r}; {_meant(name, [o.removeprefix('--') for o in options])}"
    return None


def _of_a_value(text: str, key: str | None, reasons: list[str]) -> str | None:
    """A value that is of another type, or not among the choices."""
    given = re.search(r"(?:Got|Given) value: (.*?)(?: Subclass types| Given value type| - Expected|$)", reasons[0])
    given = given or re.search(r"Given value: (.*)$", text)
    if key is None or given is None:
        return None
    value = given[1]
    if "subclass of" in reasons[0]:
        return f"{key} holds {_short(value)}, which is none; name one with its settings"
    choices = re.search(r"Expected a typing\.Literal\[(.+?)\]", reasons[0])
    if len(reasons) == 1 and choices:
        valid = re.findall(r"'([^']+)'", choices[1])
        return f"{key} is {_short(value)!r}; {nearest(value, valid)}"
    types = re.findall(r"Expected an? <class '(?:[\w.]+\.)?(\w+)'>", " ".join(reasons))
    if types == ["list"]:
        return f'{key} is {_short(value)}; give a list in quoted brackets, such as "[{_short(value)}]"'
    if types:
        return f"{key} is {_short(value)}; give a value of type {' or '.join(types)}"
    return None


def _of_something(key: str | None, reason: str) -> str:
    """What is left: the parser's own words, or those of a class about its values."""
    reason = re.sub(r"^Parser key \"[^\"]+\": ?", "", re.sub(r"\s+", " ", reason))
    if "limit" in reason and "digits" in reason:
        reason = "a number of so many digits can't be read; give a smaller one"
    return f"{key}: {_short_end(reason)}" if key else _short_end(reason)


def _short_end(text: str) -> str:
    return text if len(text) <= 4 * _LONG else f"{text[: 4 * _LONG]}…"
