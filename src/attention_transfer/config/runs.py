"""What `runs` is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from attention_transfer.config.base import Config

State = Literal["finished", "unfinished", "damaged"]


@dataclass(frozen=True, kw_only=True)
class ListRuns(Config):
    """Settings of `runs`."""

    folders: list[str] = field(default_factory=lambda: ["runs"], kw_only=False)
    """Folders in which runs are looked for, at any depth; or diff and the folders of two runs."""

    preset: str | None = None
    """Only runs of this method, or of several that are separated by commas."""

    data: str | None = None
    """Only runs on this data set."""

    seed: int | None = None
    """Only runs of this seed."""

    state: State | None = None
    """Only runs that are finished, unfinished, or damaged."""

    out: str | None = None
    """.csv file for the list, or .json file for the differences; default shows tables only."""

    overwrite: bool = False
    """Replace that file."""

    @property
    def differing(self) -> bool:
        """Whether two runs are held against each other."""
        return self.folders[:1] == ["diff"]

    def problems(self) -> list[str]:
        """No folder, or other than two runs after diff, or filters beside it."""
        found = super().problems()
        if not self.folders:
            found.append("no folder is named; name one or more, or leave them out for runs")
        if self.differing and len(self.folders) != 3:
            found.append(f"diff takes two runs, and {len(self.folders) - 1} are named; give the folders of two")
        filters = [name for name in ("preset", "data", "seed", "state") if getattr(self, name) is not None]
        if self.differing and filters:
            found.append(f"{' and '.join(filters)} can't choose among two runs that are named; leave it out")
        return found
