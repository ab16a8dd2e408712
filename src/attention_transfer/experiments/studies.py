"""Who computes which run: a study in a storage of Optuna, which several processes and machines share.

Each run is a trial, by its name. Results lie in the run folders, so that a study which is lost costs no finished run:
the same command makes it again. Processes take turns by a lock in the folder, which all of them share.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from attention_transfer.errors import UserError
from attention_transfer.experiments.storages import JOURNAL, answering, lost, quiet, storage_at, without_password
from attention_transfer.locking import LOCK, in_turn
from attention_transfer.training import differences
from attention_transfer.writing import unfinished, write_whole

log = logging.getLogger("attention_transfer")

RECORD = "study.json"
"""In the folder: the study's name, and where it is."""

BEAT, LEASE = 10.0, 60.0
"""Seconds between two signs of life of a worker, and those without one after which its run is taken up."""

MOST_ATTEMPTS = 5  # of one run, whose worker died each time
_PATIENCE = (1, 2, 4, 8)  # seconds before the next try where a database does not answer


@dataclass(frozen=True)
class Entry:
    """What a study knows of a run.

    Attributes:
        name: of the run, which is that of its folder.
        state: waiting, running, finished or failed.
        worker: who has it or had it, as "process 12 on host"; empty if nobody yet.
        since: when it was taken, or when it ended.
        seconds: from then to its end; `None` before.
        result: what was recorded of a finished run.
        error: why it failed.
        seen: the worker's last sign of life, in seconds since 1970.
    """

    number: int
    name: str
    state: str
    worker: str = ""
    since: datetime | None = None
    seconds: float | None = None
    result: Mapping[str, Any] | None = None
    error: str = ""
    seen: float | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do, for good or bad."""
        return self.state in ("finished", "failed")


class Study:
    """The runs of a folder, and who computes which."""

    def __init__(self, storage: BaseStorage, ident: int, folder: Path, name: str) -> None:
        self.storage, self.ident, self.folder, self.name = storage, ident, folder, name
        self._me = {"host": socket.gethostname(), "process": os.getpid(), "worker": uuid4().hex}
        self._signs: dict[int, tuple[object, float]] = {}  # the last sign of each worker, and when it was new here

    @classmethod
    def open(
        cls, folder: Path, configuration: Mapping[str, Any], *, storage: str | None, name: str | None = None
    ) -> Study:
        """Open the study of a folder, or make it; call it in a turn.

        Args:
            folder: where the runs are.
            configuration: what all of its runs share.
            storage: URL of a database; `None` for a journal in the folder.
            name: of the study; default the folder's.

        Raises:
            UserError: the storage can't be reached, or its study of this name is another one.
        """
        opened = storage_at(folder, storage)
        name, record = name or folder.resolve().name, _record(folder)
        token = record.get("token") or uuid4().hex
        with quiet(), answering(storage):
            try:
                ident = opened.create_new_study([StudyDirection.MAXIMIZE], name)
                opened.set_study_user_attr(ident, "configuration", json.dumps(configuration, sort_keys=True))
                opened.set_study_user_attr(ident, "token", token)
            except DuplicatedStudyError:
                ident = opened.get_study_id_from_name(name)
            known = opened.get_study_user_attrs(ident)
        there = json.loads(known.get("configuration", "{}"))
        if changed := differences(there, json.loads(json.dumps(configuration)), {}):
            raise UserError(
                f"the study {name!r} in that storage is of another configuration ({'; '.join(changed)}); "
                "choose an --out of another name"
            )
        if known.get("token") != token:
            raise UserError(
                f"the study {name!r} in that storage is of another folder; workers share one folder, so choose that "
                "one, or an --out of another name"
            )
        said = {"token": token, "study": name, "storage": without_password(storage)}
        if record != said:
            write_whole(folder / RECORD, json.dumps(said, indent=2) + "\n")
        return cls(opened, ident, folder, name)

    @classmethod
    def there(cls, folder: Path, *, storage: str | None) -> Study:
        """Open the study that a folder has.

        Raises:
            UserError: it has none, or its storage can't be reached or is in a database that has to be named.
        """
        record = _record(folder)
        url = storage or record.get("storage")
        if not record or (url is None and not (folder / JOURNAL).is_file()):
            raise UserError(f"{folder} holds no study; name the folder of a comparison or a sweep")
        if url is not None and "***" in url:
            raise UserError(f"the study of {folder} is in {url}; name it with its password by --storage")
        opened = storage_at(folder, url)
        with answering(url):
            try:
                return cls(opened, opened.get_study_id_from_name(record["study"]), folder, record["study"])
            except KeyError as error:
                raise UserError(
                    f"there is no study {record['study']!r} in {without_password(url) or folder}"
                ) from error

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other process changes the study or the folder's tables, then keep them out."""
        with turn(self.folder):
            yield

    def entries(self) -> dict[str, Entry]:
        """The latest trial of each run, by its name, in the order in which they were added."""
        with answering(None):
            trials = self.storage.get_all_trials(self.ident, deepcopy=False)
        found: dict[str, Entry] = {}
        for trial in trials:
            if "run" in trial.user_attrs:
                found[trial.user_attrs["run"]] = _entry(trial)
        return found

    def add(self, names: Sequence[str], *, again: Sequence[str] = ()) -> None:
        """Add runs that are not there yet; those that are to be done again, and those that failed, get a new trial."""
        with self.turn(), answering(None):
            known = self.entries()
            for name in names:
                if name not in known or known[name].state == "failed" or (name in again and known[name].ended):
                    self.storage.create_new_trial(
                        self.ident, create_trial(state=TrialState.WAITING, user_attrs={"run": name})
                    )

    def claim(self, names: Sequence[str]) -> Entry | None:
        """Take the first of these runs that waits, or whose worker is gone; `None` if there is none."""
        with self.turn(), answering(None):
            known = self.entries()
            for name in names:
                entry = known.get(name)
                if entry is None or entry.ended or (entry.state == "running" and not self._is_gone(entry)):
                    continue
                trial = self._trial(entry)
                attempts = self.storage.get_trial(trial).user_attrs.get("attempts", 0)
                if entry.state == "running":
                    if attempts >= MOST_ATTEMPTS:
                        self.fail(entry, f"its worker died {attempts} times, the last one was {entry.worker}")
                        continue
                    log.info("%s: taken up from %s, which is gone", name, entry.worker or "a worker")
                    self.storage.set_trial_state_values(trial, TrialState.WAITING)
                if self.storage.set_trial_state_values(trial, TrialState.RUNNING):
                    self.storage.set_trial_user_attr(trial, "attempts", attempts + 1)
                    self.storage.set_trial_user_attr(trial, "owner", {**self._me, "seen": time.time()})
                    return entry
        return None

    def adopt(self, number: int, name: str) -> Entry:
        """Take a trial that Optuna has begun, and give it a name; call it in the turn in which it was begun."""
        with answering(None):
            trial = self.storage.get_trial_id_from_study_id_trial_number(self.ident, number)
            self.storage.set_trial_user_attr(trial, "attempts", 1)
            self.storage.set_trial_user_attr(trial, "owner", {**self._me, "seen": time.time()})
            self.storage.set_trial_user_attr(trial, "run", name)
        return Entry(number, name, "running")

    @contextmanager
    def alive(self, entry: Entry) -> Iterator[None]:
        """Give signs of life for a run that was claimed, while the block runs."""
        over, trial = threading.Event(), self._trial(entry)

        def beat() -> None:
            while not over.wait(BEAT):
                with suppress(StorageInternalError, OSError):  # which says so itself when the run has ended
                    self.storage.set_trial_user_attr(trial, "owner", {**self._me, "seen": time.time()})

        thread = threading.Thread(target=beat, name="signs of life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def finish(self, entry: Entry, value: float, result: Mapping[str, Any]) -> None:
        """Record what came of a run; a database that does not answer is asked again for a while."""
        for pause in (*_PATIENCE, None):
            try:
                trial = self._trial(entry)
                with suppress(UpdateFinishedTrialError):  # by a worker that was believed to be gone
                    self.storage.set_trial_user_attr(trial, "result", dict(result))
                    self.storage.set_trial_state_values(trial, TrialState.COMPLETE, [value])
            except StorageInternalError as error:
                if pause is None:
                    raise lost(error) from error
                time.sleep(pause)
            else:
                return

    def fail(self, entry: Entry, error: str) -> None:
        """Record why a run failed."""
        with answering(None), suppress(UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(self._trial(entry), "error", error)
            self.storage.set_trial_state_values(self._trial(entry), TrialState.FAIL)

    def release(self, entry: Entry) -> None:
        """Give a run back, to be taken by anyone."""
        with answering(None), suppress(UpdateFinishedTrialError):
            attempts = self.storage.get_trial(self._trial(entry)).user_attrs.get("attempts", 1)
            self.storage.set_trial_user_attr(self._trial(entry), "attempts", attempts - 1)
            self.storage.set_trial_state_values(self._trial(entry), TrialState.WAITING)

    def _trial(self, entry: Entry) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.ident, entry.number)

    def _is_gone(self, entry: Entry) -> bool:
        """Whether the worker of a run is dead: its process on this machine, or no sign of it for the lease."""
        owner = self.storage.get_trial(self._trial(entry)).user_attrs.get("owner")
        if owner is None:  # it died while it took the run, in a turn
            return True
        if owner["host"] == self._me["host"] and not _lives(owner["process"]):
            return True
        now, sign = time.monotonic(), (owner["worker"], owner["seen"])
        if self._signs.get(entry.number, (None, 0.0))[0] != sign:
            self._signs[entry.number] = (sign, now)
        return now - self._signs[entry.number][1] > LEASE


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait for the lock of a folder, and hold it while the block runs."""
    with in_turn(folder / LOCK, folder):
        yield


def holds_study_alone(folder: Path) -> bool:
    """Whether a folder holds nothing but the beginnings of a study, as of a command that was killed there."""
    own = (LOCK, JOURNAL, f"{JOURNAL}.lock", RECORD, unfinished(folder / RECORD).name)
    return all(entry.name in own for entry in folder.iterdir())


def _record(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _entry(trial: FrozenTrial) -> Entry:
    attrs, owner = trial.user_attrs, trial.user_attrs.get("owner") or {}
    states = {TrialState.WAITING: "waiting", TrialState.RUNNING: "running", TrialState.COMPLETE: "finished"}
    start, end = trial.datetime_start, trial.datetime_complete
    return Entry(
        trial.number,
        attrs["run"],
        states.get(trial.state, "failed"),
        f"process {owner['process']} on {owner['host']}" if owner else "",
        end or start,
        (end - start).total_seconds() if start and end else None,
        attrs.get("result"),
        attrs.get("error", ""),
        owner.get("seen"),
    )


def _lives(process: int) -> bool:
    """Whether a process of this machine runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        pass
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
