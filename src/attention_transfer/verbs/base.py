"""What makes a function of a configuration a verb, callable from Python and by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from typing import Generic, ParamSpec, TypeVar

from attention_transfer.config.base import Config
from attention_transfer.config.checks import checked
from attention_transfer.errors import UserError, raise_all

_TRAIN = ("tensorboard", "sklearn", "matplotlib", "jinja2", "optuna")
EXTRAS = {"train": _TRAIN, "explore": (*_TRAIN, "starlette", "uvicorn", "anywidget")}
"""By the name of an extra, the packages that it brings, as they are imported."""

P = ParamSpec("P")
C = TypeVar("C", bound=Config)
R = TypeVar("R")


class Verb(Generic[P, R]):
    """A function of a configuration, which is called by the configuration's fields.

    Args:
        config: the configuration, a frozen dataclass.
        body: what the verb does; its docstring is the verb's help.
        name: on the command line.
        words: fields that are given there without a flag, in order.
        resumes: whether the same command, given again, goes on where it was stopped.
        lists: whether the function itself raises the configuration's problems, together with those that it finds.
        extra: what is to be installed for it besides the library: "train" for `attention-transfer[train]`.
        studies: whether it runs or reads studies, for which alone Optuna is needed.
    """

    def __init__(
        self,
        config: Callable[P, C],
        body: Callable[[C], R],
        *,
        name: str,
        words: tuple[str, ...] = (),
        resumes: bool = False,
        lists: bool = False,
        extra: str = "",
        studies: bool = False,
    ) -> None:
        self.config: type[Config] = config  # type: ignore[assignment] # a class is called by its fields, as P says
        self.body, self.name, self.words, self.resumes = body, name, words, resumes
        self.lists, self.extra, self.studies = lists, extra, studies
        self.__name__, self.__doc__, self.__wrapped__ = body.__name__, inspect.getdoc(body), body
        self.__signature__ = inspect.signature(config).replace(return_annotation=body.__annotations__["return"])

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the verb by the fields of its configuration.

        Raises:
            UserError: a value is wrong; every mistake is listed.
        """
        return self.run(self.config(*args, **kwargs))

    def run(self, config: Config) -> R:
        """Call the verb with a configuration.

        Raises:
            UserError: a value is wrong, or packages are missing; every mistake is listed.
        """
        needed = [name for name in EXTRAS.get(self.extra, ()) if name != "optuna" or self.studies]
        if missing := [name for name in needed if find_spec(name) is None]:
            raise UserError(
                f"{self.name} needs packages that are not installed ({', '.join(missing)}); "
                f'run: pip install "attention-transfer[{self.extra}]"'
            )
        config = checked(config)
        raise_all([] if self.lists else config.problems())
        return self.body(config)  # type: ignore[arg-type] # of this verb

    @property
    def summary(self) -> str:
        """What it does, in a line."""
        return str(self.__doc__).split("\n", 1)[0]


def verb(
    config: Callable[P, C],
    *,
    name: str = "",
    words: tuple[str, ...] = (),
    resumes: bool = False,
    lists: bool = False,
    extra: str = "",
    studies: bool = False,
) -> Callable[[Callable[[C], R]], Verb[P, R]]:
    """Make a function of a configuration a verb; see `Verb`."""

    def made(body: Callable[[C], R]) -> Verb[P, R]:
        chosen = name or body.__name__
        return Verb(config, body, name=chosen, words=words, resumes=resumes, lists=lists, extra=extra, studies=studies)

    return made
