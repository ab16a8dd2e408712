"""The harness itself: a program that runs where torch is loaded already runs as it would in an interpreter."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.warm import Python

SAYING = """
import json, os, sys
loaded = [name in sys.modules for name in ("torch", "timm", "attention_transfer")]
print(json.dumps([sys.argv, os.getcwd(), os.environ.get("SAID"), loaded]))
print("aside", file=sys.stderr)
"""


def test_a_program_has_its_words_its_place_and_its_environment(python: Python, tmp_path: Path) -> None:
    (tmp_path / "saying.py").write_text(SAYING)
    file = str(tmp_path / "saying.py")
    for words, argv in ((("-c", SAYING, "a"), ["-c", "a"]), ((file, "b", "c"), [file, "b", "c"])):
        done = python(*words, cwd=tmp_path, env={**os.environ, "SAID": "hello"})
        assert done.stderr == "aside\n"
        assert json.loads(done.stdout) == [argv, str(tmp_path), "hello", [True, True, False]]
    assert python("-c", SAYING).stdout.count("null") == 1  # nothing is left of the one before


def test_a_module_of_its_path_is_run(python: Python, tmp_path: Path) -> None:
    code = "import sys; print(__name__, sys.modules['__main__'].__spec__.name, sys.argv[1:])"
    (tmp_path / "hello.py").write_text(code)
    done = python("-m", "hello", "x", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.stdout == "__main__ hello ['x']\n"


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("raise SystemExit(3)", 3),
        ("import sys; sys.exit('over')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
)
def test_it_ends_with_the_code_of_an_interpreter(code: str, ended: int, python: Python) -> None:
    done = python("-c", code)
    assert done.returncode == ended
    assert ("ZeroDivisionError" in done.stderr) == ("/" in code)
    assert ("over" in done.stderr) == ("over" in code)


def test_one_that_does_not_end_is_killed(python: Python) -> None:
    assert python.start("-c", "import time; time.sleep(100)").ended(timeout=0.5).returncode == -9
