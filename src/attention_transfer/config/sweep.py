"""What `sweep` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from attention_transfer.config.training import Student


@dataclass(frozen=True, kw_only=True)
class Sweep(Student):
    """Settings of `sweep`: those of `train` that all students share, what is searched, and the budget."""

    preset: str = field(default="gta", kw_only=False)
    """The method."""

    search: dict[str, list[object]] | None = None
    """What is searched: fields of train, or of the method's rules, each with a range or with values, e.g.
    rules.weight=0.01..10 or pool=token,avg. A range from above 0 over a factor of ten or more is searched by its
    logarithm."""

    shots: str | list[int] = ""
    """Labelled images of each class, separated by commas; each amount is searched by itself."""

    fractions: str | list[float] = ""
    """Shares of the labels, separated by commas; each is searched by itself. Default all labels."""

    seeds: str | list[int] = "0,1,2,3,4"
    """Seeds of the search, separated by commas."""

    runs: int = 60
    """Budget of the search for each amount of labels: trainings."""

    minutes: float | None = None
    """Budget of the search for each amount of labels: time; no configuration is begun after it."""

    fresh: int = 6
    """Further seeds on which the best settings and the defaults are trained and tested; with fewer than six nothing
    can be decided."""

    workers: int = 1
    """Processes that compute runs on this machine; each gets its share of the threads."""

    storage: str | None = None
    """URL of a database that keeps who computes which run; default journals in the folder."""

    out: str = "runs/sweep"
    """Folder of the sweep."""

    def problems(self) -> list[str]:
        """No worker, no budget, or nothing to search."""
        found = [f"{n} is {getattr(self, n)}; give 1 or more" for n in ("workers", "runs") if getattr(self, n) < 1]
        if self.fresh < 2:
            found.append(f"fresh is {self.fresh}; give 2 or more")
        if self.minutes is not None and self.minutes <= 0:
            found.append(f"minutes is {self.minutes:g}; give more than 0")
        if not self.search:
            found.append("search is empty; say what to search, e.g. --search rules.weight=0.01..10")
        return super().problems() + found
