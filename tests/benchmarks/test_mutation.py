"""The mutants of benchmarks/mutation.py: what is changed and what is not, and which of them tests notice."""

from __future__ import annotations

import ast
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
mutants_of = runpy.run_path(str(ROOT / "benchmarks" / "mutants.py"))["mutants_of"]
SOURCE = '''"""A docstring of 1 + 1."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from some import Thing

NEAR = -2


def half(x: int | None = 3, *, way: str = "up") -> float:
    """Not 5."""
    assert x is not None
    if x < 0 and way != "down":
        raise ValueError(f"{x + 1} is below")
    x = clip(x, 1, low=0).detach()
    return x / 2 if x else 0.0
'''
EXPECTED = {
    ("operator removed", "-2", "(2)"),
    ("constant", "2", "3"),
    ("constant", "3", "4"),
    ("constant", '"up"', "'XXup'"),
    ("condition negated", 'x < 0 and way != "down"', "(not (x < 0 and way != 'down'))"),
    ("boolean", 'x < 0 and way != "down"', "(x < 0 or way != 'down')"),
    ("comparison", "x < 0", "(x <= 0)"),
    ("constant", "0", "1"),
    ("comparison", 'way != "down"', "(way == 'down')"),
    ("constant", '"down"', "'XXdown'"),
    ("statement removed", 'raise ValueError(f"{x + 1} is below")', "pass"),
    ("statement removed", "x = clip(x, 1, low=0).detach()", "pass"),
    ("arguments swapped", "clip(x, 1, low=0)", "(clip(1, x, low=0))"),
    ("argument low left out", "clip(x, 1, low=0)", "(clip(x, 1))"),
    ("detach left away", "clip(x, 1, low=0).detach()", "(clip(x, 1, low=0))"),
    ("constant", "1", "2"),
    ("return None", "return x / 2 if x else 0.0", "return None"),
    ("condition negated", "x", "(not (x))"),
    ("arithmetic", "x / 2", "(x * 2)"),
    ("constant", "0.0", "1.0"),
}


def test_what_is_changed_and_what_is_not() -> None:
    found = mutants_of("half.py", SOURCE.encode())
    assert {(one.operator, one.before, one.after) for one in found} == EXPECTED
    assert len({one.name for one in found}) == len(found)


def test_each_mutant_is_one_valid_change_of_its_line() -> None:
    tree = ast.dump(ast.parse(SOURCE))
    for one in mutants_of("half.py", SOURCE.encode()):
        changed = one.applied(SOURCE.encode()).decode()
        assert ast.dump(ast.parse(changed)) != tree
        assert [*map(str.strip, changed.splitlines())][one.line - 1] != SOURCE.splitlines()[one.line - 1].strip()


def test_lines_that_run_at_import_are_seen_by_whoever_runs_what_is_in_them() -> None:
    lines = {(one.line, one.after): (one.first, one.last) for one in mutants_of("half.py", SOURCE.encode())}
    assert lines[8, "3"][0] == 1  # a constant of the module: every test of the file
    assert lines[11, "4"] == (11, 17)  # a default: the tests of the function
    assert lines[17, "(x * 2)"] == (17, 17)


def test_a_mutant_dies_where_a_test_looks_and_survives_where_none_does(tmp_path: Path) -> None:
    pytest.importorskip("coverage")
    room, tests, out = (tmp_path / name for name in ("src/attention_transfer/attention", "tests", "out"))
    for folder in (room, tests):
        folder.mkdir(parents=True)
    for package in (room, room.parent):
        (package / "__init__.py").touch()
    (room / "sums.py").write_text(
        "def total(a, b):\n    return a + b\n\n\ndef unseen(a):\n    return not a\n\n\n"
        "def slow(n):\n    while n > 0:\n        n -= 1\n    return n\n"
    )
    (tests / "test_sums.py").write_text(
        "from attention_transfer.attention.sums import slow, total\n\n\n"
        "def test_total():\n    assert total(0, 0) == 0\n\n\n"
        "def test_slow():\n    assert slow(2) == 0\n"
    )
    settings = "mutation.LOADED, mutation.TESTS, mutation.GRACE = (), ('tests',), 5"
    program = f"from benchmarks import mutation; {settings}; mutation.main()"

    def run(*arguments: str) -> dict[str, str]:
        command = [sys.executable, "-c", program, str(out), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        rows: list[dict[str, Any]] = [json.loads(line) for line in (out / "mutants.jsonl").read_text().splitlines()]
        return {f"{row['before']} → {row['after']}": row["outcome"] for row in rows}

    assert run() == {
        "return a + b → return None": "killed",
        "a + b → (a - b)": "survived",
        "return not a → return None": "no test",
        "not a → (a)": "no test",
        "n > 0 → (not (n > 0))": "killed",
        "n > 0 → (n >= 0)": "killed",
        "0 → 1": "killed",
        "n -= 1 → n += 1": "timeout",
        "n -= 1 → pass": "timeout",
        "1 → 2": "survived",
        "return n → return None": "killed",
    }
    text = (tests / "test_sums.py").read_text()
    (tests / "test_sums.py").write_text(text + "\n\ndef test_one_and_two():\n    assert total(1, 2) == 3\n")
    assert run("--again", "survived", "--observe", "tests")["a + b → (a - b)"] == "killed"
    assert (room / "sums.py").read_text().startswith("def total(a, b):\n    return a + b\n")
