"""Which seeds to add until a question is answered, or the budget ends: `compare --until-sure`."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attention_transfer.config.training import Compare
from attention_transfer.experiments.findings import Decided, findings
from attention_transfer.experiments.grid import Cell
from attention_transfer.experiments.rows import Row
from attention_transfer.experiments.statistics import DECIDING_SEEDS, MOST_SEEDS, Sequential, until_sure
from attention_transfer.writing import write_whole

log = logging.getLogger("attention_transfer")

DEFAULT_SEEDS = 20
DECISIONS = "decisions.csv"


def sure_problems(config: Compare, grid: Sequence[Cell]) -> list[str]:
    """Why the question can't be asked, a sentence each."""
    if not config.until_sure:
        return []
    found, most = [], _most(config)
    methods, seeds = dict.fromkeys(c.preset for c in grid), dict.fromkeys(c.seed for c in grid)
    if len(methods) < 2:
        found.append(f"until_sure holds methods against the first one, but {next(iter(methods))} is the only one")
    if not DECIDING_SEEDS <= most <= MOST_SEEDS:
        found.append(f"max_seeds is {most}; give {DECIDING_SEEDS} to {MOST_SEEDS}: fewer than six seeds can't decide")
    elif len(seeds) > most:
        found.append(f"seeds names {len(seeds)}, and max_seeds is {most}; name fewer, or raise max_seeds")
    return found


@dataclass
class Sure:
    """The question of a comparison: which methods are better than the first one, for each amount of labels.

    Everything follows from the rows, so that all workers, and a command that is given again, add the same seeds.
    """

    config: Compare
    grid: Sequence[Cell]

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.reference = self.grid[0].preset
        self.numbers = list(dict.fromkeys(cell.seed for cell in self.grid))
        self.groups: dict[str, list[Cell]] = {}
        for cell in self.grid:
            self.groups.setdefault(cell.labels.title, []).append(cell)

    def more(self, rows: Sequence[Row]) -> list[Cell]:
        """The cells to compute next; none once all is decided, or the budget has ended."""
        cells = [cell for title, group in self.groups.items() for cell in self._more_of(title, group, rows)]
        if self.config.minutes is None or not cells:
            return cells
        left = 60 * self.config.minutes - (time.monotonic() - self.began)
        seconds = sum(row.seconds for row in rows) / len(rows) if rows else 0.0
        needed = seconds * -(-len(cells) // self.config.workers)
        if needed > left:
            log.info("%g minutes are over: another seed takes about %.1f", self.config.minutes, needed / 60)
            return []
        return cells

    def decided(self, rows: Sequence[Row]) -> Decided | None:
        """What is known of each method that has a seed; `None` where the number of seeds is fixed."""
        if not self.config.until_sure:
            return None
        found = {title: self._found(title, rows) for title in self.groups}
        known = {title: {name: one for name, one in methods.items() if one.seeds} for title, methods in found.items()}
        return Decided(self.reference, _most(self.config), known)

    def _more_of(self, title: str, group: Sequence[Cell], rows: Sequence[Row]) -> list[Cell]:
        """Of one amount of labels: six seeds of every method first, then one more of what is undecided."""
        there = len(self._runs(title, rows).get(self.reference, {}))
        methods = list(dict.fromkeys(cell.preset for cell in group))
        wanted = max(there + 1, DECIDING_SEEDS)
        if there >= DECIDING_SEEDS:
            open_ends = [name for name, found in self._found(title, rows).items() if found.verdict == "undecided"]
            if not open_ends or there >= _most(self.config):
                return []
            methods = [self.reference, *open_ends]
        while len(self.numbers) < wanted:
            self.numbers.append(max(self.numbers) + 1)
        by_name = {cell.preset: cell for cell in group}
        return [replace(by_name[name], seed=seed) for seed in self.numbers[there:wanted] for name in methods]

    def _found(self, title: str, rows: Sequence[Row]) -> dict[str, Sequential]:
        runs = self._runs(title, rows)
        return until_sure(runs.pop(self.reference, {}), runs, max_seeds=_most(self.config), margin=self.config.margin)

    def _runs(self, title: str, rows: Sequence[Row]) -> dict[str, dict[int, float]]:
        """Test accuracies by method and seed, in the order of the seeds, before the first one that is not complete.

        A look takes each seed whole: a method whose run of a seed ends late has no other seed in its place.
        """
        order = {seed: place for place, seed in enumerate(self.numbers)}
        own = sorted((row for row in rows if row.labels == title), key=lambda row: order[row.seed])
        there = {(row.preset, row.seed) for row in own}
        waits = [order[cell.seed] for cell in self.groups[title] if (cell.preset, cell.seed) not in there]
        runs: dict[str, dict[int, float]] = {}
        for row in own:
            if order[row.seed] < min(waits, default=len(order)):
                runs.setdefault(row.preset, {})[row.seed] = row.test_accuracy
        return runs


def say(rows: Sequence[Row], decided: Decided, margin: float | None, folder: Path) -> None:
    """Log each decision in words, and write them to `decisions.csv`."""
    text = io.StringIO()
    writer = csv.writer(text)
    heads = ["labels", "method", "reference", "verdict", "difference", "low", "high", "seeds", "more", "minutes"]
    writer.writerow(heads)
    for finding in findings(rows, margin, decided):
        for words in finding.sentences:
            log.info("%s: %s", finding.labels, words)
        for name, one in finding.differences.items():
            interval = [one.interval.mean, one.interval.low, one.interval.high]
            counts = [one.seeds, one.more, finding.minutes(name)]
            writer.writerow([finding.labels, name, finding.reference, one.verdict, *interval, *counts])
    write_whole(folder / DECISIONS, text.getvalue())


def _most(config: Compare) -> int:
    return DEFAULT_SEEDS if config.max_seeds is None else config.max_seeds
