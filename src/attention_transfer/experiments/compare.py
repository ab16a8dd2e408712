"""The verb `compare`: methods × seeds × amounts of labels, in one folder, with tables, figures and a page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import yaml
from torch import nn

from attention_transfer.arguments import parts_of, verb
from attention_transfer.artifacts import is_occupied
from attention_transfer.data import DATA, Split, Splits, check_subset, labelled_subset, load_data
from attention_transfer.errors import UserError, raise_all
from attention_transfer.evaluation import Looks, load_run, looks
from attention_transfer.experiments.pictures import draw_accuracies, draw_attention, draw_curves
from attention_transfer.experiments.report import write_report
from attention_transfer.experiments.results import Labels, Row, row_of, write_results
from attention_transfer.locking import LOCK, locked
from attention_transfer.places import check_writable, expanded, folder_problems
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.training import (
    Device,
    Display,
    Recipe,
    Run,
    compiler_problems,
    differences,
    fit_problems,
    input_problems,
    pretrain,
    train,
)
from attention_transfer.transfer import preset
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


@verb
def compare(
    presets: str | list[str] = "scratch,finetune,copy,distill,gta",
    *,
    seeds: str | list[int] = "0,1,2",
    shots: str | list[int] = "",
    fractions: str | list[float] = "",
    teacher: str | None = None,
    pretrained: bool | str = True,
    data: str = "digits",
    strict: bool = False,
    epochs: int | None = None,
    image_size: int | None = None,
    recipe: Recipe | None = None,
    device: Device = "auto",
    out: str = "runs/comparison",
) -> Comparison:
    """Compare methods over seeds and amounts of labels.

    Runs that are in the folder already are not run again, so that an interrupted comparison goes on by the same
    command, and one can be extended by more presets, seeds or labels.

    Args:
        presets: methods, separated by commas.
        seeds: seeds, separated by commas.
        shots: labelled images of each class, separated by commas.
        fractions: shares of the labels, separated by commas; with shots, both are run. Default all labels.
        teacher: whose attention is transferred; default one that is pre-trained on the same images, in out/teacher.
        pretrained: true for the teacher's own weights, false for random ones, or a weights file.
        data: data set, in the forms of [`load_data`][attention_transfer.data.load_data]; "digits" is embedded.
        strict: refuse damaged image files instead of leaving them out.
        epochs: passes over the labelled images; default the recipe's.
        image_size: input pixels, height and width; default the teacher's.
        recipe: one set of optimisation settings for all methods; default each preset's own.
        device: where to compute: auto, cpu, cuda or mps; auto takes a GPU where there is one.
        out: folder of the comparison.

    Returns:
        The folder and a row for each run.

    Raises:
        UserError: the input is wrong; every mistake is listed, and nothing was written.
    """
    grid = _grid(presets, seeds, shots, fractions)
    splits = load_data(data, strict=strict)
    every: dict[str, Any] = {"data": data, "strict": strict, "image_size": image_size, "device": device}
    shared = {**every, "epochs": epochs}
    _check(grid, splits, epochs, recipe, image_size, device)
    if teacher is None and pretrained is not True:
        raise UserError("pretrained says which weights the teacher has, but no teacher is named; add --teacher")
    if teacher is not None:
        load_vit(teacher, pretrained=pretrained, image_size=image_size)  # says what is wrong before anything is written
    config = {**shared, "pretrained": pretrained, "teacher": teacher, "recipe": asdict(recipe) if recipe else None}
    folder = expanded(out)
    _check_folder(folder, config)
    with locked(folder / LOCK, folder):
        return _compared(folder, config, grid, splits, recipe, shared, every)


def _compared(
    folder: Path,
    config: dict[str, Any],
    grid: Sequence[tuple[str, Labels, int]],
    splits: Splits,
    recipe: Recipe | None,
    shared: dict[str, Any],
    every: dict[str, Any],
) -> Comparison:
    """Run what is not there yet, and write tables, figures and the page."""
    _open(folder, config)
    teacher, pretrained = config["teacher"], config["pretrained"]
    with Display.open() as display, display.bar("comparison", len(grid) + (teacher is None)) as bar:
        source = teacher
        if source is None:
            log.info("no teacher named: pre-training one on the same images, in %s", folder / "teacher")
            source = str(pretrain(**every, out=str(folder / "teacher")).path)
            bar.advance()
        rows = []
        for name, labels, seed in grid:
            bar.note(f"{name}, {labels.title}, seed {seed}")
            one = partial(_run, folder=folder, labels=labels, seed=seed, recipe=recipe, shared=shared)
            # A teacher that is tuned first is the fine-tuned network of the same comparison; no method tunes its own.
            tuned = one("finetune", source, pretrained).path if preset(name).tune_teacher else None
            run = one(name, source, pretrained) if tuned is None else one(name, str(tuned), True)
            rows.append(row_of(run, labels, _looks(run, splits.test)))
            write_results(rows, folder)
            bar.advance()
    network = load_vit(source, pretrained=pretrained, image_size=config["image_size"])
    seen = None if splits.test.masks is None else looks(network, network, splits.test)
    write_results(rows, folder, seen)
    figures = _figures(folder, rows, network, splits)
    write_report(folder, rows, figures, teacher=source, teacher_looks=seen)
    return Comparison(folder, source, tuple(rows))


def _run(
    name: str,
    teacher: str,
    pretrained: bool | str,
    *,
    folder: Path,
    labels: Labels,
    seed: int,
    recipe: Recipe | None,
    shared: dict[str, Any],
) -> Run:
    """One student of the comparison, trained now or before."""
    return train(
        name,
        teacher=teacher,
        pretrained=pretrained,
        tune_teacher=False,
        seed=seed,
        fraction=labels.fraction,
        shots=labels.shots,
        recipe=recipe,
        out=str(folder / "runs" / f"{name}-{labels.slug}-seed{seed}"),
        **shared,
    )


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


def _grid(
    presets: str | list[str], seeds: str | list[int], shots: str | list[int], fractions: str | list[float]
) -> list[tuple[str, Labels, int]]:
    """Every run, ordered so that an early stop leaves whole seeds behind."""
    problems: list[str] = []
    names = _listed(presets, str, "presets", problems)
    numbers = _listed(seeds, int, "seeds", problems)
    amounts = [Labels(shots=n) for n in _listed(shots, int, "shots", problems)]
    amounts += [Labels(fraction=f) for f in _listed(fractions, float, "fractions", problems)]
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
    raise_all(problems)
    return [(name, labels, seed) for labels in amounts or [Labels()] for seed in numbers for name in names]


def _check(
    grid: Sequence[tuple[str, Labels, int]],
    splits: Splits,
    epochs: int | None,
    recipe: Recipe | None,
    image_size: int | None,
    device: Device,
) -> None:
    """Find before the first run what would stop a later one."""
    settings = recipe or Recipe()
    problems = (settings if epochs is None else replace(settings, epochs=epochs)).problems()
    problems += compiler_problems(settings, device) + fit_problems(settings, device=device)
    problems += dict.fromkeys(problem for _, _, seed in grid for problem in input_problems(seed, image_size))
    for labels in dict.fromkeys(labels for _, labels, _ in grid):
        try:
            labelled_subset(splits.train.labels, fraction=labels.fraction, shots=labels.shots)
        except UserError as error:
            problems.append(str(error))
    raise_all(problems)


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
        defaults = {name: parameter.default for name, parameter in signature(compare).parameters.items()}
        if changed := differences(read_mapping(marker), config, defaults):
            raise UserError(f"{folder} holds another comparison ({'; '.join(changed)}); choose another --out")
    elif is_occupied(folder):
        raise UserError(f"{folder} is not empty and holds no comparison; choose another folder with --out")
    check_writable(folder)


def _open(folder: Path, config: dict[str, Any]) -> None:
    """Say in the folder what is compared there."""
    if not (folder / _MARKER).is_file():
        write_whole(folder / _MARKER, yaml.safe_dump(config, sort_keys=False))
