"""The verb `sweep`: the settings that a method needs, found on validation, and tested once on fresh seeds."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import CategoricalDistribution

from attention_transfer.artifacts import is_occupied
from attention_transfer.config.base import as_data, settings_of
from attention_transfer.config.presets import preset
from attention_transfer.config.sweep import Sweep
from attention_transfer.config.training import Compare, Student
from attention_transfer.data import DATA, SharedPixels, load_data
from attention_transfer.errors import UserError, raise_all
from attention_transfer.experiments.cells import DECODED, Cells
from attention_transfer.experiments.grid import Cell, grid_of, in_words, run_of
from attention_transfer.experiments.rows import Row
from attention_transfer.experiments.search import Search, Trialled, space_of
from attention_transfer.experiments.statistics import Difference, judged, mean_interval, sentence
from attention_transfer.experiments.studies import Study, turn
from attention_transfer.experiments.workers import in_processes
from attention_transfer.places import check_writable, expanded, folder_problems
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.training import Display, differences
from attention_transfer.training.asked import filled_in
from attention_transfer.training.train_problems import train_problems
from attention_transfer.viewing import Point, save
from attention_transfer.viewing.sweeps import sweep_chart
from attention_transfer.vit import check_repairable, load_vit
from attention_transfer.writing import write_whole

log = logging.getLogger("attention_transfer")

_MARKER = "sweep.yaml"


@dataclass(frozen=True)
class Best:
    """What a sweep found for one amount of labels.

    Attributes:
        labels: the amount, in words.
        settings: the best ones on validation.
        rows: of the fresh seeds: the defaults' runs, then the best settings'.
        difference: of their test accuracies, best settings minus defaults, over the fresh seeds.
        tried: the configurations of the search.
    """

    labels: str
    settings: Mapping[str, Any]
    rows: tuple[Row, ...]
    difference: Difference
    tried: tuple[Trialled, ...]


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep: its folder, and what was found for each amount of labels."""

    path: Path
    found: tuple[Best, ...]


def sweep_settings(config: Sweep) -> SweepResult:
    """The verb `sweep`."""
    shared = {name: getattr(config, name) for name in settings_of(Student)}
    compare = Compare(
        config.preset,
        seeds=config.seeds,
        shots=config.shots,
        fractions=config.fractions,
        workers=config.workers,
        storage=config.storage,
        out=config.out,
        **shared,
    )
    grid, folder, problems = grid_of(compare), expanded(config.out), list[str]()
    if preset(config.preset).tune_teacher:
        problems.append(
            f"preset {config.preset!r} tunes its teacher first; name a fine-tuned run as its teacher instead"
        )
    rules = config.rules if config.rules is not None else list(preset(config.preset).rules)
    space = space_of(config.search or {}, rules, problems)
    raise_all(problems)
    load_data(config.data, strict=config.strict)
    raise_all(
        [*dict.fromkeys(found for cell in grid for found in train_problems(filled_in(run_of(compare, cell, folder))))]
    )
    if config.teacher is not None:  # says what is wrong before anything is written
        network = load_vit(config.teacher, pretrained=config.pretrained, image_size=config.image_size)
        if config.repair:
            check_repairable(network)
    asked = {
        name: value
        for name, value in as_data(config).items()
        if name in (*settings_of(Student), "preset", "seeds", "search")
    }
    _check_folder(folder, asked)
    with turn(folder):
        if not (folder / _MARKER).is_file():
            write_whole(folder / _MARKER, yaml.safe_dump(asked, sort_keys=False))
    until = None if config.minutes is None else time.time() + 60 * config.minutes
    seeds = list(dict.fromkeys(cell.seed for cell in grid))
    searches = [
        Search(compare, folder / f"search-{labels.slug}", labels, space, seeds, config.runs, until)
        for labels in dict.fromkeys(cell.labels for cell in grid)
    ]
    found = tuple(_best(search, config, asked) for search in searches)
    write_whole(folder / "curve.csv", _curve(found))
    if chart := _chart(found, space):
        save(chart, folder / "curve.png")
    write_whole(folder / "sweep.md", _words(config, found))
    for line in _words(config, found).splitlines():
        if line:
            log.info("%s", line.removeprefix("- "))
    return SweepResult(folder, found)


def _best(search: Search, config: Sweep, asked: Mapping[str, Any]) -> Best:
    """Search, or go on; then train the best settings and the defaults on fresh seeds, and test them."""
    search.folder.mkdir(parents=True, exist_ok=True)
    with turn(search.folder):
        named = f"{expanded(config.out).resolve().name}-{search.folder.name}"
        study = Study.open(search.folder, asked, storage=config.storage, name=named)
    with Display.open() as display, display.bar("search", search.runs) as bar:

        def look() -> int | None:
            bar.note(f"{len(study.entries())} configurations")
            return None if over(study) else sum(entry.ended for entry in study.entries().values())

        def over(study: Study) -> bool:
            known = study.entries().values()
            return bool(known) and all(entry.ended for entry in known) and not search.has_budget(study)

        if config.workers == 1:
            search.work(study)
        elif look() is not None:
            in_processes(config.workers, _work, (search, config.storage), search.folder, look)
    tried = search.tried(study)
    whole = [one for one in tried if not one.pruned]
    if not whole:
        errors = "; ".join(dict.fromkeys(entry.error for entry in study.entries().values() if entry.error))
        raise UserError(f"no configuration of the search could be trained ({errors}); search a narrower range")
    best = max(whole, key=lambda one: one.order)
    return _tested(search, config, asked, best, tried)


def _tested(search: Search, config: Sweep, asked: Mapping[str, Any], best: Trialled, tried: Sequence[Trialled]) -> Best:
    """Train defaults and best settings on the same fresh seeds; the test split is read here, and nowhere before."""
    labels, name = search.labels, str(search.config.presets)
    chosen = replace(labels, settings=in_words(best.settings))
    first = max(search.seeds) + 1
    fresh = range(first, first + config.fresh)
    cells = [Cell(name, labels, seed, {}) for seed in fresh]
    cells += [Cell(name, chosen, seed, best.settings) for seed in fresh]
    folder = expanded(config.out) / f"test-{labels.slug}"
    folder.mkdir(exist_ok=True)
    with turn(folder):
        named = f"{expanded(config.out).resolve().name}-{folder.name}"
        study = Study.open(folder, asked, storage=config.storage, name=named)
    with Display.open() as display, display.bar("test on fresh seeds", len(cells)) as bar:
        rows = Cells(search.config, folder, cells).run(study, bar)
    for place in (search.folder, folder):
        SharedPixels(place / DECODED).remove()
    defaults, winners = ({r.seed: r.test_accuracy for r in rows if r.labels == t} for t in (labels.title, chosen.title))
    return Best(labels.title, best.settings, tuple(rows), judged(winners, defaults), tuple(tried))


def _work(search: Search, storage: str | None) -> None:
    """What a worker process does."""
    search.work(Study.there(search.folder, storage=storage))


def _curve(found: Sequence[Best]) -> str:
    """Every configuration, with its validation accuracy and a 95 % interval over the seeds, as CSV."""
    text, names = io.StringIO(), list(found[0].tried[0].settings)
    writer = csv.writer(text)
    writer.writerow(["labels", *names, "validation_accuracy", "low", "high", "seeds", "pruned"])
    for best in found:
        for one in sorted(best.tried, key=lambda t: [str(v) if isinstance(v, str) else v for v in t.settings.values()]):
            interval = mean_interval(one.accuracies)
            settings = [one.settings[name] for name in names]
            writer.writerow(
                [best.labels, *settings, interval.mean, interval.low, interval.high, len(one.accuracies), one.pruned]
            )
    return text.getvalue()


def _chart(found: Sequence[Best], space: Mapping[str, Any]) -> Any:
    """Validation accuracy over each numeric setting, a panel each; `None` where there is none."""
    panels: dict[str, dict[str, list[tuple[float, Point]]]] = {}
    for name, range_ in space.items():
        if isinstance(range_, CategoricalDistribution):
            continue
        for best in found:
            points = []
            for one in best.tried:
                if one.pruned:
                    continue
                interval = mean_interval(one.accuracies)
                low, high = (interval.low, interval.high) if len(one.accuracies) > 1 else (interval.mean, interval.mean)
                points.append((float(one.settings[name]), Point(interval.mean, low, high, one.accuracies)))
            panels.setdefault(name, {})[best.labels] = sorted(points, key=lambda point: point[0])
    logarithmic = {name for name, range_ in space.items() if getattr(range_, "log", False)}
    return sweep_chart(panels, logarithmic) if panels else None


def _words(config: Sweep, found: Sequence[Best]) -> str:
    """What was found, a sentence for each amount of labels."""
    lines = []
    for best in found:
        given_up = sum(one.pruned for one in best.tried)
        settings = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in best.settings.items())
        verdict = sentence(f"{config.preset} with {settings}", "the defaults", best.difference)
        lines.append(
            f"- {best.labels}: {settings} is best on validation, of {len(best.tried)} configurations "
            f"({given_up} given up early). On fresh seeds, tested once: {verdict}."
        )
    return "\n".join(lines) + "\n"


def _check_folder(folder: Path, asked: Mapping[str, Any]) -> None:
    """Refuse, with nothing written, a folder that holds anything but the same sweep."""
    if folder.is_file():
        raise UserError(f"{folder} is a file; choose a folder for the sweep with --out")
    data = [] if asked["data"] in DATA else [asked["data"]]
    raise_all(folder_problems(folder, data=data, models=[asked["teacher"], asked["pretrained"]]))
    if (folder / _MARKER).is_file():
        if changed := differences(read_mapping(folder / _MARKER), asked, {}):
            raise UserError(f"{folder} holds another sweep ({'; '.join(changed)}); choose another --out")
    elif is_occupied(folder):
        raise UserError(f"{folder} is not empty and holds no sweep; choose another folder with --out")
    check_writable(folder)
