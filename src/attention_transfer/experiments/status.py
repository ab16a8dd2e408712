"""The verb `status`: what of a study runs where, since when, and how long the rest will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from rich.table import Table

from attention_transfer.config.status import Status
from attention_transfer.experiments.studies import RECORD, Entry, Study
from attention_transfer.places import expanded
from attention_transfer.ui import console, show_line


@dataclass(frozen=True)
class StudyStatus:
    """How far a study is.

    Attributes:
        path: its folder.
        entries: its runs, in the order in which they were added.
        seconds_left: until all have ended, with the workers that there are; `None` while no run has ended, or none
            runs.
    """

    path: Path
    entries: tuple[Entry, ...]
    seconds_left: float | None

    def of(self, state: str) -> list[Entry]:
        """The runs that are waiting, running, finished or failed."""
        return [entry for entry in self.entries if entry.state == state]


def study_status(config: Status) -> StudyStatus:
    """The verb `status`."""
    folder = expanded(config.folder)
    places = [folder] if (folder / RECORD).is_file() else sorted(record.parent for record in folder.glob(f"*/{RECORD}"))
    studies = [Study.there(place, storage=config.storage) for place in places or [folder]]
    entries = tuple(entry for study in studies for entry in study.entries().values())
    found = StudyStatus(folder, entries, seconds_left(entries, datetime.now()))
    _show(found)
    return found


def seconds_left(entries: Sequence[Entry], now: datetime) -> float | None:
    """How long the rest takes, by the mean of the runs that are finished, on as many workers as run now."""
    took = [entry.seconds for entry in entries if entry.state == "finished" and entry.seconds is not None]
    running = [now - entry.since for entry in entries if entry.state == "running" and entry.since is not None]
    waiting = sum(entry.state == "waiting" for entry in entries)
    if not waiting and not running:
        return 0.0
    if not took or not running:
        return None
    mean = sum(took) / len(took)
    begun = sum(max(0.0, mean - elapsed.total_seconds()) for elapsed in running)
    return (waiting * mean + begun) / len(running)


def in_time(seconds: float) -> str:
    """`0:03:12`."""
    return str(timedelta(seconds=round(seconds)))


def _show(found: StudyStatus) -> None:
    now, counts = datetime.now(), {s: len(found.of(s)) for s in ("finished", "running", "waiting", "failed")}
    left = "unknown yet" if found.seconds_left is None else in_time(found.seconds_left)
    if counts["waiting"] and not counts["running"]:
        left = "nobody works on it; the command that began it goes on"
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    show_line(
        f"{found.path}: {told or 'no run yet'}" + (f"; ETA {left}" if counts["waiting"] or counts["running"] else "")
    )
    if running := found.of("running"):
        table = Table("run", "worker", "for", "last sign")
        for entry in running:
            since = "" if entry.since is None else in_time((now - entry.since).total_seconds())
            sign = "" if entry.seen is None else f"{in_time(max(0.0, now.timestamp() - entry.seen))} ago"
            table.add_row(entry.name, entry.worker, since, sign)
        console.print(table)
    for entry in found.of("failed"):
        show_line(f"failed: {entry.name}: {entry.error}")
