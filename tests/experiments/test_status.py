"""What `status` says of a study, and how it estimates the time that is left."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from attention_transfer import UserError, status
from attention_transfer.experiments.status import seconds_left
from attention_transfer.experiments.studies import Entry, Study, turn

NOW = datetime(2026, 1, 1, 12)


def entry(state: str, seconds: float | None = None, ago: float = 0.0) -> Entry:
    return Entry(0, "x", state, since=NOW - timedelta(seconds=ago), seconds=seconds)


def test_the_rest_takes_the_mean_of_what_is_finished_shared_by_who_works() -> None:
    finished = [entry("finished", 10), entry("finished", 20)]
    running = [entry("running", ago=5), entry("running", ago=100)]
    assert seconds_left([*finished, *running, *[entry("waiting")] * 4], NOW) == (4 * 15 + 10) / 2
    assert seconds_left(finished, NOW) == 0
    assert seconds_left([*finished, entry("waiting")], NOW) is None  # nobody works
    assert seconds_left([*running, entry("waiting")], NOW) is None  # nothing is known
    assert seconds_left([*finished, entry("failed", 1), *running[:1]], NOW) == 10


def test_status_says_what_runs_where_and_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    with turn(folder):
        study = Study.open(folder, {}, storage=None)
    study.add(["one", "two", "three"])
    first, second = study.claim(["one"]), study.claim(["two"])
    assert first is not None
    assert second is not None
    study.fail(first, "the loss is no number")
    found = status(str(folder))
    assert {state: [e.name for e in found.of(state)] for state in ("running", "waiting", "failed")} == {
        "running": ["two"],
        "waiting": ["three"],
        "failed": ["one"],
    }
    said = capsys.readouterr().err
    assert "1 running, 1 waiting, 1 failed; ETA unknown yet" in said
    assert "failed: one: the loss is no number" in said
    assert study.entries()["two"].worker in said


def test_a_folder_without_a_study_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no study"):
        status(str(tmp_path))
    assert not list(tmp_path.iterdir())
