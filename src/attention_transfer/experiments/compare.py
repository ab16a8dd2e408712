"""The verb `compare`: methods × seeds × amounts of labels, in one folder, with tables, figures and a page."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from attention_transfer.artifacts import is_occupied
from attention_transfer.config.base import as_data, settings_of
from attention_transfer.config.training import Compare, Pretrain, Student
from attention_transfer.data import DATA, SharedPixels, Splits, labelled_subset, load_data
from attention_transfer.errors import UserError, raise_all
from attention_transfer.evaluation import looks
from attention_transfer.experiments.cells import DECODED, Cells
from attention_transfer.experiments.explored import explored
from attention_transfer.experiments.findings import Decisions
from attention_transfer.experiments.grid import Cell, grid_of, run_of
from attention_transfer.experiments.pictures import draw_accuracies, draw_attention, draw_curves
from attention_transfer.experiments.report import write_report
from attention_transfer.experiments.results import write_results
from attention_transfer.experiments.rows import Row
from attention_transfer.experiments.studies import Study, holds_study_alone, turn
from attention_transfer.experiments.sure import Sure, say, sure_problems
from attention_transfer.experiments.workers import POLL
from attention_transfer.locking import Busy
from attention_transfer.places import check_writable, expanded, folder_problems
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.training import Display, differences
from attention_transfer.training.asked import filled_in
from attention_transfer.training.pretrain import pretrain_teacher
from attention_transfer.training.train_problems import train_problems
from attention_transfer.vit import check_repairable, load_vit
from attention_transfer.writing import write_whole

log = logging.getLogger("attention_transfer")

_MARKER = "comparison.yaml"


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        path: its folder, with results.csv, results.md, figures/ and report.html.
        teacher: what its students were given as a teacher.
        rows: a row a run.
        decisions: of until_sure, by the amount of labels in words and by the method; else empty.
    """

    path: Path
    teacher: str
    rows: tuple[Row, ...]
    decisions: Decisions = field(default_factory=dict)


def compare_methods(config: Compare) -> Comparison:
    """The verb `compare`."""
    grid = grid_of(config)
    teachers = list(dict.fromkeys(cell.settings["teacher"] for cell in grid if "teacher" in cell.settings))
    if teachers and config.teacher is not None:
        raise UserError("teacher is named, and it is an axis of the grid; leave one of the two out")
    splits = load_data(config.data, strict=config.strict)
    folder = expanded(config.out)
    shared = {name: value for name, value in as_data(config).items() if name in settings_of(Student)}
    config = replace(config, teacher=teachers[0]) if teachers else config
    _check(config, grid, splits)
    if config.teacher is None and config.pretrained is not True:
        raise UserError("pretrained says which weights the teacher has, but no teacher is named; add --teacher")
    repairs = any(cell.settings.get("repair", config.repair) for cell in grid)
    for teacher in teachers or [config.teacher]:  # says what is wrong before anything is written
        if teacher is not None:
            network = load_vit(teacher, pretrained=config.pretrained, image_size=config.image_size)
            if repairs:
                check_repairable(network)
    _check_folder(folder, config, shared, teachers or [config.teacher])
    with turn(folder):
        study = Study.open(folder, shared, storage=config.storage)
        if not (folder / _MARKER).is_file():  # it says what is compared there
            write_whole(folder / _MARKER, yaml.safe_dump(shared, sort_keys=False))
    return _compared(config, study, grid, splits)


def _compared(config: Compare, study: Study, grid: Sequence[Cell], splits: Splits) -> Comparison:
    """Run what is not there yet, and write tables, figures and the page."""
    folder = study.folder
    with Display.open() as display:
        if config.teacher is None:
            log.info("no teacher named: pre-training one on the same images, in %s", folder / "teacher")
            config = replace(config, teacher=_made_teacher(config, folder))
        rows, sure, cells = list[Row](), Sure(config, grid), list(grid)
        while len(cells) > len(rows):
            with display.bar("comparison", len(cells)) as bar:
                rows = Cells(config, folder, cells).run(study, bar)
            cells += sure.more(rows) if config.until_sure else []
        SharedPixels(folder / DECODED).remove()
    source = str(config.teacher)
    network = load_vit(source, pretrained=config.pretrained, image_size=config.image_size)
    seen = None if splits.test.masks is None else looks(network, network, splits.test)
    decided = sure.decided(rows)
    with study.turn():
        write_results(rows, folder, seen, config.margin, decided)
        figures = _figures(folder, rows, network, splits)
        write_report(
            folder,
            rows,
            figures,
            teacher=source,
            teacher_looks=seen,
            margin=config.margin,
            decided=decided,
            explorer=explored(config, source, rows),
        )
        if decided is not None:
            say(rows, decided, config.margin, folder)
    return Comparison(folder, source, tuple(rows), {} if decided is None else decided.decisions)


def _made_teacher(config: Compare, folder: Path) -> str:
    """The folder of a teacher that is pre-trained on the same images, perhaps by another process."""
    asked = Pretrain(
        data=config.data,
        strict=config.strict,
        image_size=config.image_size,
        device=config.device,
        out=str(folder / "teacher"),
    )
    while True:
        try:
            return str(pretrain_teacher(asked).path)
        except Busy:
            time.sleep(POLL)


def _figures(folder: Path, rows: Sequence[Row], teacher: nn.Module, splits: Splits) -> list[Path]:
    """Charts, and pictures of attention: those of the first seed at the first amount of labels."""
    shown = [Path(row.run) for row in rows if (row.labels, row.seed) == (rows[0].labels, rows[0].seed)]
    return [
        draw_accuracies(rows, folder / "figures" / "accuracy.png"),
        draw_curves(rows, folder / "figures" / "curves.png"),
        *draw_attention(shown, teacher, splits, folder / "figures"),
    ]


def _check(config: Compare, grid: Sequence[Cell], splits: Splits) -> None:
    """Find before the first run what would stop a later one."""
    folder = expanded(config.out)
    named = config if config.teacher is not None else replace(config, teacher=str(folder / "teacher"), pretrained=True)
    raise_all(sure_problems(config, grid))
    problems = dict.fromkeys(found for cell in grid for found in train_problems(filled_in(run_of(named, cell, folder))))
    for labels in dict.fromkeys((cell.labels.fraction, cell.labels.shots) for cell in grid):
        try:
            labelled_subset(splits.train.labels, fraction=labels[0], shots=labels[1])
        except UserError as error:
            problems |= dict.fromkeys([str(error)])
    raise_all([*problems])


def _check_folder(folder: Path, config: Compare, shared: Mapping[str, Any], teachers: Sequence[str | None]) -> None:
    """Refuse, with nothing written, a folder that holds anything but a comparison of the same data and teacher."""
    marker = folder / _MARKER
    if folder.is_file():
        raise UserError(f"{folder} is a file; choose a folder for the comparison with --out")
    data = [] if config.data in DATA else [config.data]
    raise_all(folder_problems(folder, data=data, models=[*teachers, config.pretrained]))
    if marker.is_file():
        if changed := differences(read_mapping(marker), shared, as_data(Compare())):
            raise UserError(f"{folder} holds another comparison ({'; '.join(changed)}); choose another --out")
    elif is_occupied(folder) and not holds_study_alone(folder):
        raise UserError(f"{folder} is not empty and holds no comparison; choose another folder with --out")
    check_writable(folder)
