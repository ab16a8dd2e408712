"""The command line: each verb is a typed function, and its flags are the function's parameters."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from rich.logging import RichHandler

from attention_transfer.errors import UserError, nearest
from attention_transfer.evaluation import predict
from attention_transfer.experiments import compare, demo
from attention_transfer.training import Interrupted, Recipe, console, pretrain, train
from attention_transfer.transfer import PRESETS

VERBS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "pretrain": pretrain,
    "train": train,
    "compare": compare,
    "predict": predict,
}


class Parser(ArgumentParser):
    """Says what is wrong in a sentence, and names the nearest option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        """Leave with the user's error, without usage and traceback."""
        raise UserError(_sentence(message, [option for a in self._actions for option in a.option_strings]))


def build_parser(arguments: Sequence[str] = ()) -> ArgumentParser:
    """The parser; with `--preset` among the arguments, the help of `train` shows that preset's own recipe."""
    parser = Parser(
        prog="attention-transfer", description="Transfer the attention of a pre-trained vision transformer."
    )
    verbs = parser.add_subcommands(required=True, dest="verb")
    for name, verb in VERBS.items():
        summary = (verb.__doc__ or "").split("\n", 1)[0]
        sub = Parser(prog=f"attention-transfer {name}", description=summary)
        sub.add_argument("--config", action=ActionConfigFile, help="YAML file with values of any flags")
        sub.add_function_arguments(verb, as_positional=True, sub_configs=False)
        if name == "train" and (preset := _preset_in(arguments)) in PRESETS:
            sub.set_defaults({"recipe": Recipe(**PRESETS[preset].recipe)})  # type: ignore[arg-type]
        verbs.add_subcommand(name, sub, help=summary)
    return parser


def run(arguments: Sequence[str]) -> None:
    """Parse and call a verb."""
    parser = build_parser(arguments)
    settings: Namespace = parser.parse_args(list(arguments))
    chosen = parser.instantiate_classes(settings)
    values = {key: value for key, value in vars(chosen[chosen.verb]).items() if key != "config"}
    VERBS[chosen.verb](**values)


def main() -> NoReturn:
    """Entry point: 0 done, 2 wrong input (a sentence says what), 130 stopped by Ctrl-C (the same command goes on)."""
    handler = RichHandler(console=console, show_path=False, show_time=False, show_level=False)
    handler.setLevel(logging.INFO)
    log = logging.getLogger("attention_transfer")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        run(sys.argv[1:])
    except UserError as error:
        console.print(f"[bold red]error:[/bold red] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt):
        console.print("stopped; the same command goes on from the last checkpoint")
        sys.exit(130)
    sys.exit(0)


def _preset_in(arguments: Sequence[str]) -> str:
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=False):
        if flag == "--preset":
            return value
        if flag.startswith("--preset="):
            return flag.partition("=")[2]
    return ""


def _sentence(message: str, options: list[str]) -> str:
    """Jsonargparse's message in one line; an unknown option gets the nearest valid one."""
    text = re.sub(r"\s+", " ", message).strip()
    unknown = re.search(r"[Uu]nrecognized arguments: (--[\w.-]+)", text) or re.search(
        r"Key '([\w.]+)' is not expected", text
    )
    if unknown:
        flag = unknown[1] if unknown[1].startswith("--") else f"--{unknown[1]}"
        return f"there is no option {flag}; {nearest(flag, options)}"
    verb = re.search(r"invalid choice: '?([\w-]+)'?", text)
    if verb and verb[1] not in VERBS:
        return f"there is no verb {verb[1]!r}; {nearest(verb[1], VERBS)}"
    return text


if __name__ == "__main__":
    main()
