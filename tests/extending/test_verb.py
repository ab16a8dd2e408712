"""A verb of someone else's: one file, registered by an entry point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

SOURCE = '''
"""A verb that greets."""

from dataclasses import dataclass, field

from attention_transfer import Config, UserError, verb


@dataclass(frozen=True, kw_only=True)
class Hello(Config):
    """Settings of hello."""

    name: str = field(kw_only=False)
    """Who is greeted."""

    times: int = 1
    """How often."""

    def problems(self) -> list[str]:
        return [] if self.times > 0 else [f"times is {self.times}; give at least 1"]


@verb(Hello, words=("name",))
def hello(config: Hello) -> str:
    """Greet someone."""
    text = " ".join([f"hello {config.name}"] * config.times)
    print(text)
    return text
'''


def test_it_is_called_and_explained_like_any_other(package: Callable[..., Any]) -> None:
    run = package("greeting", SOURCE, verbs="hello = greeting:hello")
    assert run("hello", "Ada", "--times", "2").stdout == "hello Ada hello Ada\n"
    assert "hello Greet someone." in " ".join(run("--help").stdout.split())
    told = " ".join(run("hello", "--help").stdout.split())
    assert "NAME Who is greeted." in told
    assert "--times INT How often. (default 1)" in told
    assert yaml.safe_load(run("hello", "Ada", "--print_config").stdout) == {"name": "Ada", "times": 1}
    wrong = run("hello", "Ada", "--time", "x", "--times", "y")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == [
        "error: there is no option --time; did you mean '--times'?",
        "times is y; give a value of type int",
    ]
    assert run("hello", "Ada", "--times=0").stderr == "error: times is 0; give at least 1\n"
    assert run("helo").stderr == "error: there is no verb 'helo'; did you mean 'hello'?\n"
