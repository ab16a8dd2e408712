"""The verb `runs`: which runs there are, and how two of them differ."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from attention_transfer.artifacts import MODEL_FILES, is_run
from attention_transfer.config.runs import ListRuns, State
from attention_transfer.errors import UserError, raise_all
from attention_transfer.experiments.rows import Labels
from attention_transfer.places import expanded, out_problems
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.text_files import read_json
from attention_transfer.training import RunFolder, TrainedConfig
from attention_transfer.training.run_files import read_summary
from attention_transfer.training.run_folder import flat
from attention_transfer.ui import console, show_line
from attention_transfer.writing import write_whole


@dataclass(frozen=True)
class RunRecord:
    """One run, as its folder says; what it does not have yet is `None`.

    Attributes:
        run: its folder.
        method: the preset, or for `pretrain` the architecture.
        data: the data set.
        labels: how many labels, in words.
        seed: of the run.
        state: finished, unfinished, or damaged.
        validation_accuracy: share in [0, 1], of the kept epoch.
        test_accuracy: share in [0, 1].
        seconds: time in training.
    """

    run: str
    method: str | None
    data: str | None
    labels: str | None
    seed: int | None
    state: State
    validation_accuracy: float | None = None
    test_accuracy: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class RunDifference:
    """How two runs differ.

    Attributes:
        a: folder of the first.
        b: folder of the second.
        settings: by dotted name, the values of both; those that are alike are left out, as is the folder itself.
        environment: the same of what was recorded of their machines.
        results: by dotted name, the numbers of both; `None` where a run does not have one.
    """

    a: str
    b: str
    settings: dict[str, tuple[Any, Any]]
    environment: dict[str, tuple[Any, Any]]
    results: dict[str, tuple[float | None, float | None]]


def show_runs(config: ListRuns) -> list[RunRecord] | RunDifference:
    """The verb `runs`."""
    if config.out is not None:
        suffix = ".json" if config.differing else ".csv"
        problems = out_problems(
            config.out, suffix, overwrite=config.overwrite, data=[], models=config.folders, names=MODEL_FILES
        )
        raise_all(problems)
    return _differ(config) if config.differing else _listed(config)


def _listed(config: ListRuns) -> list[RunRecord]:
    found = [
        record for folder in config.folders for record in map(_record, _runs_in(folder)) if _wanted(record, config)
    ]
    if not found:
        show_line(f"no such run in {', '.join(config.folders)}")
    else:
        _show_list(found)
    if config.out is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(RunRecord)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in found)
        write_whole(expanded(config.out), text.getvalue())
    return found


def _runs_in(place: str) -> Iterator[Path]:
    """Folders of runs, in the order of their names; what is inside a run is not looked at."""
    root = expanded(place)
    if not root.is_dir():
        raise UserError(f"there is no folder {place}; name one that holds runs")
    for parent, folders, _ in os.walk(root):
        if is_run(Path(parent)):
            folders.clear()
            yield Path(parent)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _record(path: Path) -> RunRecord:
    folder = RunFolder(path)
    try:
        config = folder.config()
        summary = folder.summary() if folder.finished else {}
    except UserError as error:
        show_line(str(error))
        return RunRecord(str(path), None, None, None, None, "damaged")
    return RunRecord(
        run=str(path),
        method=config.preset if isinstance(config, TrainedConfig) else config.model,
        data=config.data,
        labels=Labels(config.fraction, config.shots).title if isinstance(config, TrainedConfig) else None,
        seed=config.seed,
        state="finished" if summary else "unfinished",
        validation_accuracy=summary.get("validation", {}).get("accuracy"),
        test_accuracy=summary.get("test", {}).get("accuracy"),
        seconds=summary.get("train", {}).get("seconds"),
    )


def _wanted(record: RunRecord, config: ListRuns) -> bool:
    presets = None if config.preset is None else [name.strip() for name in config.preset.split(",")]
    return (
        (presets is None or record.method in presets)
        and config.data in (None, record.data)
        and config.seed in (None, record.seed)
        and config.state in (None, record.state)
    )


def _show_list(records: Sequence[RunRecord]) -> None:
    table = Table()
    for heading in ("run", "method", "data", "labels"):
        table.add_column(heading)
    for heading in ("seed", "validation, %", "test, %", "training, s", "state"):
        table.add_column(heading, justify="right")
    for one in records:
        accuracies = (_percent(one.validation_accuracy), _percent(one.test_accuracy))
        seconds = "–" if one.seconds is None else f"{one.seconds:.0f}"
        words = (str(value) if value is not None else "–" for value in (one.method, one.data, one.labels, one.seed))
        table.add_row(one.run, *words, *accuracies, seconds, one.state)
    console.print(table)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _differ(config: ListRuns) -> RunDifference:
    a, b = (_run(name) for name in config.folders[1:])
    found = RunDifference(
        str(a.path),
        str(b.path),
        {name: pair for name, pair in _pairs(_settings(a), _settings(b)).items() if name not in ("out", "overwrite")},
        _pairs(_recorded(a), _recorded(b)),
        _pairs(_results(a), _results(b), alike=True),
    )
    _show_difference(found)
    if config.out is not None:
        write_whole(expanded(config.out), json.dumps(asdict(found), indent=2) + "\n")
    return found


def _run(name: str) -> RunFolder:
    path = expanded(name)
    if not is_run(path):
        raise UserError(f"{name} is no run; name the folder of one, with its run.json")
    return RunFolder(path)


def _settings(run: RunFolder) -> dict[str, Any]:
    """Every setting by its dotted name; those of rules by the rule's."""
    config = {**vars(run.config()), **read_mapping(run.path / "config.yaml")}
    rules = {rule["class_path"].rpartition(".")[2]: rule.get("init_args", {}) for rule in config.get("rules") or []}
    return flat({**config, "rules": rules or None})


def _recorded(run: RunFolder) -> dict[str, Any]:
    content = read_json(run.path / "environment.json") if run.has("environment.json") else {}
    return flat({name: value for name, value in content.items() if name != "command"})


def _results(run: RunFolder) -> dict[str, float]:
    summary = flat(read_summary(run.path / "summary.json")) if run.finished else {}
    return {
        name: float(value)
        for name, value in summary.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "seed"
    }


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any], *, alike: bool = False) -> dict[str, tuple[Any, Any]]:
    """Values of both by name; those that are equal only if they are asked for."""
    pairs = {name: (a.get(name), b.get(name)) for name in {**a, **b}}
    return {name: pair for name, pair in pairs.items() if alike or pair[0] != pair[1]}


def _show_difference(found: RunDifference) -> None:
    show_line(f"A is {found.a}\nB is {found.b}")
    for title, pairs in (("settings", found.settings), ("environment", found.environment)):
        if pairs:
            table = Table(title, "A", "B")
            for name, values in pairs.items():
                table.add_row(name, *map(str, values))
            console.print(table)
        else:
            show_line(f"no difference of {title}")
    table = Table("results", "A", "B", "B less A")
    for name, (first, second) in found.results.items():
        change = "–" if first is None or second is None else f"{second - first:+.4g}"
        table.add_row(name, *("–" if value is None else f"{value:.4g}" for value in (first, second)), change)
    console.print(table)
    for name, run in (("A", found.a), ("B", found.b)):
        if not RunFolder(Path(run)).finished:
            show_line(f"{name} is not finished, so it has no results yet")
    show_line("one run each: what is more than chance takes several seeds of both (attention-transfer compare)")
