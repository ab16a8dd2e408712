"""What holds for the settings of every verb."""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import attention_transfer
from attention_transfer import Config, UserError, Verb, verb, verbs
from attention_transfer.config.base import docs_of, options_of, parts_of
from attention_transfer.verbs import VERBS


@dataclass(frozen=True)
class Settings:
    rate: float = 1.0
    cut: float | None = None


@dataclass(frozen=True, kw_only=True)
class Work(Config):
    out: str = field(default="x", kw_only=False)
    """Where to."""

    data: list[str] | None = field(default=None, kw_only=False)
    seed: int = 0
    shots: str = ""
    settings: Settings | None = None


@verb(Work)
def work(config: Work) -> tuple[object, ...]:
    """Give back what it gets."""
    return config.out, config.data, config.seed, config.shots, config.settings


def test_a_tilde_is_the_home_directory_in_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert work("~/runs/x", ["~/a", "b~"])[:2] == ("/home/me/runs/x", ["/home/me/a", "b~"])
    assert work("~") == ("/home/me", None, 0, "", None)


def test_what_is_wrong_is_listed_at_once() -> None:
    with pytest.raises(UserError) as caught:
        work(" ", ["a", ""], seed=10**30, settings=Settings(float("nan")))
    assert str(caught.value).splitlines() == [
        "out is empty; give a value, or leave it out",
        "data[1] is empty; give a value, or leave it out",
        "seed is a number beyond 64 bits; give a smaller one",
        "settings.rate is nan; give a finite number",
    ]


def test_values_from_python_are_of_the_types_of_their_settings() -> None:
    wrong: dict[str, object] = {"out": 5, "data": {"a": "b"}, "seed": "2", "shots": ["5"], "settings": Settings("3")}  # type: ignore[arg-type]
    with pytest.raises(UserError) as caught:
        work(**wrong)  # type: ignore[arg-type]
    assert str(caught.value).splitlines() == [
        "out is 5; give a value of type str",
        "data is {'a': 'b'}; give a value of type list",
        "seed is '2'; give a value of type int",
        "shots is ['5']; give a value of type str",
        "settings.rate is '3'; give a value of type float",
    ]
    for value in (True, 2.5):
        with pytest.raises(UserError, match=f"seed is {value}; give a value of type int"):
            work(seed=value)  # type: ignore[arg-type]
    assert work(Path("a"), ("b",), settings=Settings(2))[:2] == (Path("a"), ("b",))  # type: ignore[arg-type]
    assert work(settings=Settings(np.float64(0.5)))[-1] == Settings(0.5)


@pytest.mark.parametrize("number", [10**5_000, -(2**63), 2**63], ids=["long", "low", "high"])
def test_numbers_have_64_bits(number: int) -> None:
    with pytest.raises(UserError, match="seed is a number beyond 64 bits"):
        work(seed=number)


def test_nothing_is_empty_but_what_may_be() -> None:
    with pytest.raises(UserError, match=r"^out is empty"):
        work(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"settings\.rate is empty"):
        work(settings=Settings(None))  # type: ignore[arg-type]
    assert work(data=None, shots="", settings=Settings(cut=None)) == ("x", None, 0, "", Settings())


def test_parts_between_commas() -> None:
    problems: list[str] = []
    assert parts_of("a, b", "x", problems) == ["a", "b"]
    assert parts_of("", "x", problems) == []
    assert problems == []
    parts_of("a,,b", "shots", problems)
    assert problems == ["shots is 'a,,b', which has an empty part; give values with single commas between them"]


def test_a_word_that_is_none_of_the_choices_is_refused_in_python_too() -> None:
    with pytest.raises(UserError, match=r"^device is 'tpu'; did you mean 'cpu'\?$"):
        attention_transfer.train("scratch", device="tpu")  # type: ignore[arg-type]


def test_a_verb_has_the_signature_of_its_settings() -> None:
    assert list(inspect.signature(work).parameters) == ["out", "data", "seed", "shots", "settings"]
    assert work.__doc__ == "Give back what it gets."
    for found in VERBS.values():
        assert isinstance(found, Verb)
        assert getattr(attention_transfer, found.__name__) is found


def test_a_verb_is_the_file_of_its_name_and_no_file_is_forgotten() -> None:
    assert {module.name for module in pkgutil.iter_modules(verbs.__path__)} - {"base"} == VERBS.keys()
    assert [found.body.__module__ for found in VERBS.values()] == [f"attention_transfer.verbs.{name}" for name in VERBS]


def test_every_setting_of_every_verb_says_what_it_is() -> None:
    for found in VERBS.values():
        for name, setting in options_of(found.config).items():
            top, _, inner = name.partition(".")
            group = options_of(found.config)[top].group
            docs = docs_of(group) if inner and group else docs_of(found.config)
            assert docs.get(inner or top, "").endswith("."), (found.name, setting)
