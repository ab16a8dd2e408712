"""The runs of a comparison, computed as a study's: by this process, by several, and by whoever joins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

from attention_transfer.config.presets import preset
from attention_transfer.config.training import Compare
from attention_transfer.data import SharedPixels, Splits, keep_decoded, load_data, mode_of
from attention_transfer.engine.progress import Bar
from attention_transfer.errors import UserError
from attention_transfer.evaluation import Looks, load_run, looks
from attention_transfer.experiments.grid import Cell, run_of
from attention_transfer.experiments.results import write_results
from attention_transfer.experiments.rows import Row, row_of
from attention_transfer.experiments.studies import Entry, Study
from attention_transfer.experiments.sure import Sure
from attention_transfer.experiments.workers import Computed, in_processes, work
from attention_transfer.training import Run
from attention_transfer.training.train import train_student
from attention_transfer.vit import describe

log = logging.getLogger("attention_transfer")

DECODED = "decoded"
"""Folder of decoded images inside a study's folder, while its runs are computed."""


@dataclass(frozen=True)
class Cells:
    """Cells of a grid and how they are computed; it is sent to the workers.

    Attributes:
        config: what all share; the teacher is named in it.
        folder: of the comparison.
        grid: the cells. Several may be one run, where a method lacks what is varied.
    """

    config: Compare
    folder: Path
    grid: Sequence[Cell]

    @cached_property
    def by_name(self) -> dict[str, Cell]:
        """A cell for each run, by the name of its folder."""
        found: dict[str, Cell] = {}
        for cell in self.grid:
            found.setdefault(self.name(cell), cell)
        return found

    def name(self, cell: Cell) -> str:
        """Of the folder of a cell's run."""
        return Path(str(run_of(self.config, cell, self.folder).out)).name

    def run(self, study: Study, bar: Bar) -> list[Row]:
        """Compute what is not there yet, wait for what others compute, and give the rows.

        Raises:
            UserError: runs failed; each is named. The tables have the others.
        """
        names, ended = list(self.by_name), set[str]()
        known = study.entries()
        study.add(names, again=[name for name in names if name in known and not self._is_there(known[name])])

        def look() -> int | None:
            known = study.entries()
            new = [name for name in names if known[name].ended and name not in ended]
            ended.update(new)
            for _ in new:
                bar.advance()
            if new:
                self._write(study)
            bar.note("; ".join(self.by_name[name].title for name in names if known[name].state == "running")[:80])
            return None if len(ended) == len(names) else len(ended)

        if look() is not None:
            if ended:
                log.info("%d of %d runs are there already", len(ended), len(names))
            if self.config.workers == 1:
                work(study, names, self.compute, look=look)
            else:
                in_processes(self.config.workers, _work, (replace(self), names), self.folder, look)
        known = study.entries()
        if failed := [known[name] for name in names if known[name].state == "failed"]:
            said = "; ".join(f"{entry.name}: {entry.error}" for entry in failed)
            raise UserError(f"{len(failed)} of {len(names)} runs failed ({said}); the same command tries them again")
        return self._rows(study)

    def compute(self, name: str) -> Computed:
        """Train one run, or resume it; its value is its test accuracy."""
        cell = self.by_name[name]
        asked = run_of(self.config, cell, self.folder)
        # A teacher that is tuned first is the fine-tuned network of the same comparison; no method tunes its own.
        if preset(cell.preset).tune_teacher:
            tuned = train_student(run_of(self.config, replace(cell, preset="finetune"), self.folder), self.shared)
            asked = replace(asked, teacher=str(tuned.path), pretrained=True)
        run = train_student(asked, self.shared)
        row = row_of(run, cell.labels, self._looks(run))
        return row.test_accuracy, asdict(row)

    @property
    def shared(self) -> SharedPixels:
        """Decoded image files, which all runs and workers have in common."""
        return SharedPixels(self.folder / DECODED)

    @cached_property
    def _splits(self) -> Splits:
        return load_data(self.config.data, strict=self.config.strict)

    def _looks(self, run: Run) -> Looks | None:
        """How well a student's attention covers the objects, where that is known."""
        test = self._splits.test
        if test.masks is None:
            return None
        loaded = load_run(run.path)
        images = keep_decoded(test.images, "test", shared=self.shared, mode=mode_of(describe(loaded.network.student)))
        return looks(loaded.network, loaded.network.student, replace(test, images=images))

    def _is_there(self, entry: Entry) -> bool:
        """Whether what was recorded of a finished run can be read, and its folder is still there."""
        if entry.state != "finished":
            return True
        there = (self.folder / "runs" / entry.name / "summary.json").is_file()
        return there and set(entry.result or {}) == {f.name for f in fields(Row)}

    def _rows(self, study: Study) -> list[Row]:
        """A row for each cell whose run is finished, in the order of the grid."""
        known = study.entries()
        found = [(cell, known.get(self.name(cell))) for cell in self.grid]
        return [
            Row(**{**entry.result, "labels": cell.labels.title})
            for cell, entry in found
            if entry is not None and entry.result is not None and entry.state == "finished"
        ]

    def _write(self, study: Study) -> None:
        """Renew the tables; no other process writes them meanwhile."""
        with study.turn():
            if rows := self._rows(study):
                decided = Sure(self.config, self.grid).decided(rows)
                write_results(rows, self.folder, margin=self.config.margin, decided=decided)


def _work(cells: Cells, names: Sequence[str]) -> None:
    """What a worker process does."""
    work(Study.there(cells.folder, storage=cells.config.storage), names, cells.compute, raises=False)
