"""The grid of regret: each trial is run once, and the table is of those that were."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import regret


def test_what_is_done_is_not_done_again(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    settings = ["--teacher", teacher, "--data", "digits", "--shots", "1", "--presets", "linear-probe", "--epochs", "1"]
    for rates in ("1", "1,3", "1,3"):
        monkeypatch.setattr(sys, "argv", ["regret", "run", str(rows), *settings, "--rates", rates])
        regret.main()
    one, three = map(json.loads, rows.read_text().splitlines())
    assert (one["rate"], three["rate"]) == (1, 3)
    assert three["lr"] == pytest.approx(3 * one["lr"])
    monkeypatch.setattr(sys, "argv", ["regret", "table", str(rows)])
    capsys.readouterr()
    regret.main()
    best = 100 * max(one["validation_accuracy"], three["validation_accuracy"])
    own = 100 * one["validation_accuracy"]
    assert f"| digits | 1 | linear-probe | {own:.1f} | {best:.1f} | " in capsys.readouterr().out


def test_the_table_of_the_docs_is_that_of_the_committed_rows() -> None:
    home = Path(__file__).parents[2]
    folder = home / "benchmarks" / "results" / "regret-2026-11-27"
    rows = [row for name in ("scenes", "fashion") for row in regret.read(folder / f"{name}.jsonl")]
    assert regret.table(rows) in (home / "docs" / "results.md").read_text()
