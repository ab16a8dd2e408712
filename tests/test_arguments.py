"""What holds for the arguments of every verb."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from attention_transfer import UserError, parser
from attention_transfer.arguments import parts_of, verb


@dataclass(frozen=True)
class Settings:
    rate: float = 1.0
    cut: float | None = None


@verb
def work(
    out: str = "x", data: list[str] | None = None, *, seed: int = 0, shots: str = "", settings: Settings | None = None
) -> tuple[object, ...]:
    """Give back what it gets."""
    return out, data, seed, shots, settings


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


def test_every_verb_looks_at_its_arguments(tmp_path: Path) -> None:
    for name, function in parser.VERBS.items():
        assert function.__wrapped__.__name__ == function.__name__, name  # type: ignore[attr-defined]
