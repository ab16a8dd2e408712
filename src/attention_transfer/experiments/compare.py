"""The verb `compare`: methods × seeds × amounts of labels, in one folder, with tables, figures and a page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import yaml
from torch import nn

from attention_transfer.artifacts import is_occupied
from attention_transfer.config.base import as_data, options_of, parts_of, settings_of, with_settings
from attention_transfer.config.presets import preset
from attention_transfer.config.recipe import Recipe
from attention_transfer.config.training import Compare, Pretrain, Student, Train
from attention_transfer.config.values import brought
from attention_transfer.data import DATA, Split, Splits, check_subset, labelled_subset, load_data
from attention_transfer.errors import UserError, nearest, raise_all
from attention_transfer.evaluation import Looks, load_run, looks
from attention_transfer.experiments.pictures import draw_accuracies, draw_attention, draw_curves
from attention_transfer.experiments.report import write_report
from attention_transfer.experiments.results import write_results
from attention_transfer.experiments.rows import Labels, Row, row_of
from attention_transfer.locking import LOCK, locked
from attention_transfer.places import check_writable, expanded, folder_problems
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.training import Display, Run, differences
from attention_transfer.training.pretrain import pretrain_teacher
from attention_transfer.training.train import filled_in, train_student
from attention_transfer.training.train_problems import train_problems
from attention_transfer.vit import load_vit
from attention_transfer.writing import write_whole

log = logging.getLogger("attention_transfer")
T = TypeVar("T")

_MARKER = "comparison.yaml"


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        path: its folder, with results.csv, results.md, figures/ and report.html.
        teacher: what its students were given as a teacher.
        rows: a row a run.
    """

    path: Path
    teacher: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Cell:
    """One run of the grid: a method, an amount of labels, a seed, and what is varied besides."""

    preset: str
    labels: Labels
    seed: int
    settings: Mapping[str, Any]


def compare_methods(config: Compare) -> Comparison:
    """The verb `compare`."""
    grid = _grid(config)
    splits = load_data(config.data, strict=config.strict)
    folder = expanded(config.out)
    _check(config, grid, splits)
    if config.teacher is None and config.pretrained is not True:
        raise UserError("pretrained says which weights the teacher has, but no teacher is named; add --teacher")
    if config.teacher is not None:  # says what is wrong before anything is written
        load_vit(config.teacher, pretrained=config.pretrained, image_size=config.image_size)
    shared = {name: value for name, value in as_data(config).items() if name in settings_of(Student)}
    _check_folder(folder, shared)
    with locked(folder / LOCK, folder):
        return _compared(config, folder, shared, grid, splits)


def _compared(
    config: Compare, folder: Path, shared: dict[str, Any], grid: Sequence[_Cell], splits: Splits
) -> Comparison:
    """Run what is not there yet, and write tables, figures and the page."""
    if not (folder / _MARKER).is_file():  # it says what is compared there
        write_whole(folder / _MARKER, yaml.safe_dump(shared, sort_keys=False))
    with Display.open() as display, display.bar("comparison", len(grid) + (config.teacher is None)) as bar:
        source = config.teacher
        if source is None:
            log.info("no teacher named: pre-training one on the same images, in %s", folder / "teacher")
            source = str(pretrain_teacher(_teacher(config, folder)).path)
            bar.advance()
        config, rows = replace(config, teacher=source), []
        for cell in grid:
            bar.note(f"{cell.preset}, {cell.labels.title}, seed {cell.seed}")
            asked = _run(config, cell, folder)
            # A teacher that is tuned first is the fine-tuned network of the same comparison; no method tunes its own.
            if preset(cell.preset).tune_teacher:
                tuned = train_student(_run(config, replace(cell, preset="finetune"), folder))
                asked = replace(asked, teacher=str(tuned.path), pretrained=True)
            run = train_student(asked)
            rows.append(row_of(run, cell.labels, _looks(run, splits.test)))
            write_results(rows, folder, margin=config.margin)
            bar.advance()
    network = load_vit(source, pretrained=config.pretrained, image_size=config.image_size)
    seen = None if splits.test.masks is None else looks(network, network, splits.test)
    write_results(rows, folder, seen, config.margin)
    figures = _figures(folder, rows, network, splits)
    write_report(folder, rows, figures, teacher=source, teacher_looks=seen, margin=config.margin)
    return Comparison(folder, source, tuple(rows))


def _teacher(config: Compare, folder: Path) -> Pretrain:
    """How a teacher is made on the same images."""
    return Pretrain(
        data=config.data,
        strict=config.strict,
        image_size=config.image_size,
        device=config.device,
        out=str(folder / "teacher"),
    )


def _run(config: Compare, cell: _Cell, folder: Path) -> Train:
    """What `train` is told for a cell of the grid."""
    shared = {name: getattr(config, name) for name in settings_of(Student)}
    run = replace(
        Train(cell.preset, **shared),
        seed=cell.seed,
        fraction=cell.labels.fraction,
        shots=cell.labels.shots,
        tune_teacher=False,
        out=str(folder / "runs" / f"{cell.preset}-{cell.labels.slug}-seed{cell.seed}"),
    )
    run = with_settings(replace(run, recipe=preset(cell.preset).recipe_with(run.recipe or Recipe())), cell.settings)
    taught = any(rule.needs_teacher for rule in filled_in(run).rules or [])
    return run if taught else replace(run, pairing=None)  # which has an effect on other methods alone


def _looks(run: Run, test: Split) -> Looks | None:
    """How well a student's attention covers the objects, where that is known."""
    if test.masks is None:
        return None
    loaded = load_run(run.path)
    return looks(loaded.network, loaded.network.student, test)


def _figures(folder: Path, rows: Sequence[Row], teacher: nn.Module, splits: Splits) -> list[Path]:
    """Charts, and pictures of attention: those of the first seed at the first amount of labels."""
    shown = [Path(row.run) for row in rows if (row.labels, row.seed) == (rows[0].labels, rows[0].seed)]
    return [
        draw_accuracies(rows, folder / "figures" / "accuracy.png"),
        draw_curves(rows, folder / "figures" / "curves.png"),
        *draw_attention(shown, teacher, splits, folder / "figures"),
    ]


def _grid(config: Compare) -> list[_Cell]:
    """Every run, ordered so that an early stop leaves whole seeds behind."""
    problems: list[str] = []
    names = _listed(config.presets, str, "presets", problems)
    numbers = _listed(config.seeds, int, "seeds", problems)
    amounts = [Labels(shots=n) for n in _listed(config.shots, int, "shots", problems)]
    amounts += [Labels(fraction=f) for f in _listed(config.fractions, float, "fractions", problems)]
    for name in names:
        try:
            preset(name)
        except UserError as error:
            problems.append(str(error))
    for labels in amounts:
        problems += check_subset(labels.fraction, labels.shots)
    for what, values in (("presets", names), ("seeds", numbers)):
        if not values:
            problems.append(f"{what} is empty; name at least one")
    variants = _variants(config.vary or {}, problems)
    raise_all(problems)
    return [
        _Cell(name, replace(labels, settings=_in_words(settings)), seed, settings)
        for labels in amounts or [Labels()]
        for settings in variants
        for seed in numbers
        for name in names
    ]


def _in_words(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in settings.items())


def _variants(axes: Mapping[str, Sequence[object]], problems: list[str]) -> list[dict[str, Any]]:
    """Every combination of the values of further settings, by the settings' dotted names."""
    known = {name: setting for name, setting in options_of(Student).items() if name not in ("data", "strict", "rules")}
    found: list[list[tuple[str, Any]]] = []
    for name, values in axes.items():
        if name not in known or known[name].group is not None:
            problems.append(f"vary can't change {name!r}; {nearest(name, known)}")
            continue
        try:
            found.append([(name, brought(value, known[name].kind, f"vary.{name}")) for value in values])
        except UserError as error:
            problems.append(str(error))
    return [dict(chosen) for chosen in product(*found)]


def _check(config: Compare, grid: Sequence[_Cell], splits: Splits) -> None:
    """Find before the first run what would stop a later one."""
    folder = expanded(config.out)
    named = config if config.teacher is not None else replace(config, teacher=str(folder / "teacher"), pretrained=True)
    problems = dict.fromkeys(found for cell in grid for found in train_problems(filled_in(_run(named, cell, folder))))
    for labels in dict.fromkeys((cell.labels.fraction, cell.labels.shots) for cell in grid):
        try:
            labelled_subset(splits.train.labels, fraction=labels[0], shots=labels[1])
        except UserError as error:
            problems |= dict.fromkeys([str(error)])
    raise_all([*problems])


def _listed(value: str | Sequence[T], kind: Callable[[str], T], what: str, problems: list[str]) -> list[T]:
    """Values from a list or from text with commas, each once, in order."""
    items = parts_of(value, what, problems) if isinstance(value, str) else list(value)
    values: list[T] = []
    for item in items:
        try:
            values.append(kind(item) if isinstance(item, str) else item)
        except ValueError:
            problems.append(f"{what} has {item!r}, which is no {kind.__name__}; give numbers separated by commas")
    return list(dict.fromkeys(values))


def _check_folder(folder: Path, config: dict[str, Any]) -> None:
    """Refuse, with nothing written, a folder that holds anything but a comparison of the same data and teacher."""
    marker = folder / _MARKER
    if folder.is_file():
        raise UserError(f"{folder} is a file; choose a folder for the comparison with --out")
    data = [] if config["data"] in DATA else [config["data"]]
    raise_all(folder_problems(folder, data=data, models=[config["teacher"], config["pretrained"]]))
    if marker.is_file():
        if changed := differences(read_mapping(marker), config, as_data(Compare())):
            raise UserError(f"{folder} holds another comparison ({'; '.join(changed)}); choose another --out")
    elif is_occupied(folder):
        raise UserError(f"{folder} is not empty and holds no comparison; choose another folder with --out")
    check_writable(folder)
