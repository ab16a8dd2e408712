"""Who computes which run: claims, leases, several workers, storages, and what is wrong with them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from attention_transfer import UserError
from attention_transfer.errors import Interrupted
from attention_transfer.experiments import studies, workers
from attention_transfer.experiments.storages import JOURNAL, without_password
from attention_transfer.experiments.studies import MOST_ATTEMPTS, Study
from attention_transfer.experiments.workers import Computed, in_processes, work
from attention_transfer.locking import Busy

NAMES = [f"run-{n}" for n in range(6)]


@pytest.fixture(params=["journal", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"


def opened(folder: Path, storage: str | None = None) -> Study:
    folder.mkdir(exist_ok=True)
    with studies.turn(folder):
        return Study.open(folder, {"epochs": 2}, storage=storage)


def test_each_run_is_added_once_and_claimed_once_in_order(tmp_path: Path, storage: str | None) -> None:
    one, other = opened(tmp_path / "c", storage), opened(tmp_path / "c", storage)
    one.add(NAMES[:3])
    other.add(NAMES[:4])
    assert list(one.entries()) == NAMES[:4]
    claims = [study.claim(NAMES) for study in (one, other, one, other, one)]
    assert [claim.name if claim else None for claim in claims] == [*NAMES[:4], None]
    assert claims[0] is not None
    other.finish(claims[0], 0.5, {"row": 1})
    ended = one.entries()[NAMES[0]]
    assert (ended.state, ended.result, ended.worker) == ("finished", {"row": 1}, one.entries()[NAMES[1]].worker)
    assert one.entries()[NAMES[1]].state == "running"


def test_a_failed_run_is_tried_again_by_the_next_command_and_a_finished_one_is_not(tmp_path: Path) -> None:
    study = opened(tmp_path / "c")
    study.add(NAMES[:2])
    for name in NAMES[:2]:
        claim = study.claim([name])
        assert claim is not None
        study.fail(claim, "no good") if name == NAMES[0] else study.finish(claim, 1.0, {})
    assert study.entries()[NAMES[0]].error == "no good"
    study.add(NAMES[:2])
    assert [entry.state for entry in study.entries().values()] == ["waiting", "finished"]


def test_a_run_is_taken_up_when_its_process_is_gone(
    tmp_path: Path, storage: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = tmp_path / "c", subprocess.Popen(["sleep", "60"])
    with monkeypatch.context() as there:
        there.setattr(os, "getpid", lambda: other.pid)
        gone = opened(folder, storage)
    gone.add(NAMES[:1])
    assert gone.claim(NAMES[:1]) is not None
    study = opened(folder, storage)
    assert study.claim(NAMES[:1]) is None  # for that process lives
    other.kill()
    other.wait()
    assert study.claim(NAMES[:1]) is not None
    assert f"process {os.getpid()} on " in study.entries()[NAMES[0]].worker
    assert study.claim(NAMES[:1]) is None


def test_of_another_machine_signs_of_life_are_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "BEAT", 0.05)
    monkeypatch.setattr(studies, "LEASE", 0.5)
    here = opened(tmp_path / "c")
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    there = opened(tmp_path / "c")
    there.add(NAMES[:1])
    claim = there.claim(NAMES[:1])
    assert claim is not None
    with there.alive(claim):
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            assert here.claim(NAMES[:1]) is None
            time.sleep(0.05)
    assert here.claim(NAMES[:1]) is None
    time.sleep(0.7)
    assert here.claim(NAMES[:1]) is not None


def test_a_run_that_kills_its_workers_fails_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened(tmp_path / "c")
    study.add(NAMES[:2])
    monkeypatch.setattr(studies, "_lives", lambda process: False)
    for _ in range(MOST_ATTEMPTS):
        claim = study.claim(NAMES[:1])
        assert claim is not None
    assert study.claim(NAMES[:1]) is None
    assert f"its worker died {MOST_ATTEMPTS} times" in study.entries()[NAMES[0]].error
    claim = study.claim(NAMES)
    assert claim is not None
    assert claim.name == NAMES[1]


def test_work_goes_on_past_a_run_that_is_wrong_and_gives_back_what_was_stopped(tmp_path: Path) -> None:
    study, seen = opened(tmp_path / "c"), list[str]()
    study.add(NAMES[:3])

    def compute(name: str) -> Computed:
        seen.append(name)
        if name == NAMES[0]:
            raise UserError("the loss is no number")
        if name == NAMES[1] and seen.count(name) == 1:
            raise Busy("another run tunes that teacher")
        return 1.0, {"seen": len(seen)}

    work(study, NAMES[:3], compute)
    assert seen == [*NAMES[:3], NAMES[1]]
    assert [entry.state for entry in study.entries().values()] == ["failed", "finished", "finished"]
    study.add(NAMES[3:4])

    def stopped(name: str) -> Computed:
        raise Interrupted

    with pytest.raises(Interrupted):
        work(study, NAMES[3:4], stopped)
    assert study.entries()[NAMES[3]].state == "waiting"


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    opened(tmp_path / "c", url)
    with pytest.raises(UserError, match="of another configuration \\(epochs is 2 there and 3 here\\)"):
        Study.open(tmp_path / "c", {"epochs": 3}, storage=url)
    (tmp_path / "elsewhere" / "c").mkdir(parents=True)
    with pytest.raises(UserError, match="is of another folder"):
        Study.open(tmp_path / "elsewhere" / "c", {"epochs": 2}, storage=url)
    assert json.loads((tmp_path / "c" / "study.json").read_text())["storage"] == url


def test_a_password_is_kept_nowhere_and_asked_for(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(
        json.dumps({"token": "1", "study": "c", "storage": without_password("postgresql://me:secret@host/x")})
    )
    assert "secret" not in (tmp_path / "study.json").read_text()
    with pytest.raises(UserError, match="name it with its password by --storage"):
        Study.there(tmp_path, storage=None)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgres//x", "can't be used"),
        ("sqlite:////nowhere/at/all.db", "can't be used"),
        ("mysql+nodriver://host/x", "can't be used"),
        ("postgresql+pg8000://localhost:1/x", "pg8000|can't be used"),
    ],
)
def test_a_storage_out_of_reach_is_said_in_a_sentence(url: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        Study.open(tmp_path, {}, storage=url)


@pytest.mark.parametrize(
    ("url", "module", "command"),
    [
        ("postgresql+psycopg://me:secret@host/x", "psycopg", "pip install 'psycopg[binary]'"),
        ("postgresql+psycopg2://me:secret@host/x", "psycopg2", "pip install psycopg2-binary"),
        ("postgresql+pg8000://me:secret@host/x", "pg8000", "pip install pg8000"),
        ("mysql://me:secret@host/x", "MySQLdb", "pip install mysqlclient"),
    ],
)
def test_a_driver_that_is_missing_is_named_with_the_command_that_installs_it(
    url: str, module: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # so that importing it fails
    with pytest.raises(UserError) as caught:
        Study.open(tmp_path, {}, storage=url)
    assert str(caught.value).endswith(f"; install it: {command}")
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_damaged_journal_is_named_with_the_way_out(tmp_path: Path) -> None:
    opened(tmp_path / "c").add(NAMES)
    journal = tmp_path / "c" / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20] + b"x\n{}\n")
    with pytest.raises(UserError, match=r"study\.journal is damaged .* remove it"):
        opened(tmp_path / "c")
    journal.unlink()
    assert opened(tmp_path / "c").entries() == {}


def test_a_database_that_goes_away_is_asked_again_and_then_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened(tmp_path / "c", f"sqlite:///{tmp_path}/study.db")
    study.add(NAMES[:1])
    claim = study.claim(NAMES)
    assert claim is not None
    pauses, record = list[float](), study.storage.set_trial_state_values

    def away(trial: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if state == TrialState.COMPLETE and len(pauses) != 2:
            raise StorageInternalError from OSError("no route to host")
        return record(trial, state, values)

    monkeypatch.setattr(study.storage, "set_trial_state_values", away)
    monkeypatch.setattr(time, "sleep", pauses.append)
    study.finish(claim, 1.0, {})
    assert pauses == [1, 2]
    assert study.entries()[NAMES[0]].state == "finished"
    pauses.append(0)
    study.add(NAMES[1:2])
    claim = study.claim(NAMES)
    assert claim is not None
    with pytest.raises(UserError, match=r"can't be reached \(no route to host\); .* the same command goes on"):
        study.finish(claim, 1.0, {})


def _slow(folder: Path, storage: str | None, seconds: float) -> None:
    """A worker whose runs are files: each is begun once, or resumed by who takes it up."""

    def compute(name: str) -> Computed:
        with (folder / name).open("a") as file:
            file.write(f"{os.getpid()} ")
        time.sleep(seconds)
        return float(name[-1]), {"name": name}

    work(Study.there(folder, storage=storage), NAMES, compute, raises=False)


@pytest.mark.usefixtures("warm_workers")
def test_workers_that_are_killed_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    folder, storage, killed = tmp_path / "c", None, list[int]()
    study = opened(folder, storage)
    study.add(NAMES)

    def look() -> int | None:
        known = study.entries()
        running = [
            int(entry.worker.split()[1]) for entry in known.values() if entry.state == "running" and entry.worker
        ]
        if len(killed) < 2 and (fresh := [process for process in running if process not in killed]):
            os.kill(fresh[0], signal.SIGKILL)
            killed.append(fresh[0])
        ended = sum(entry.ended for entry in known.values())
        return None if ended == len(NAMES) else ended

    in_processes(2, _slow, (folder, storage, 0.3), folder, look)
    assert {name: entry.result for name, entry in study.entries().items()} == {name: {"name": name} for name in NAMES}
    begun = [process for name in NAMES for process in (folder / name).read_text().split()]
    assert len(killed) == 2
    assert len(NAMES) <= len(begun) <= len(NAMES) + len(killed)  # only what a killed worker had is begun again


def _say_how_processes_start(file: Path) -> None:
    part = file.with_suffix(".part")
    part.write_text(multiprocessing.get_start_method())
    part.rename(file)


@pytest.mark.usefixtures("warm_workers")
def test_what_loads_images_in_a_worker_starts_as_it_does_elsewhere(tmp_path: Path) -> None:
    """Workers are started from nothing; what they start themselves is forked where that is the system's way."""
    said = tmp_path / "said"
    in_processes(1, _say_how_processes_start, (said,), tmp_path, lambda: None if said.exists() else 0)
    assert said.read_text() == multiprocessing.get_start_method()


@pytest.mark.usefixtures("warm_workers")
def test_workers_that_die_at_once_are_not_replaced_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_FRUITLESS", 1)
    with pytest.raises(UserError, match=r"workers end again and again, the last one with code 7; see .*1\.log"):
        in_processes(1, os._exit, (7,), tmp_path, lambda: 0)
