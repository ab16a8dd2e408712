"""Read the files of a run's folder and check them against the shapes that are declared here.

A file that does not fit, because it is damaged or not a run's, is named in one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from attention_transfer.config.base import members
from attention_transfer.errors import UserError
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.text_files import read_json

Shape = type | tuple[type, ...] | dict[str, Any]
"""What a value must be: of a type, or an object with at least these keys."""

NUMBER = (int, float)

_SPLIT = {"images": int}
_COMMON: dict[str, Any] = {"seed": int, "train": {"images": int, "steps": int, "seconds": NUMBER}, "best_epoch": int}
_SCORES = {"accuracy": NUMBER, "cross_entropy": NUMBER, "calibration_error": NUMBER}

TRAIN_SUMMARY: Shape = {
    **_COMMON,
    "preset": str,
    "validation": {**_SPLIT, "accuracy": NUMBER},
    "test": {**_SPLIT, **_SCORES},
}
"""`summary.json` of `train`."""

PRETRAIN_SUMMARY: Shape = {**_COMMON, "model": str, "validation": {**_SPLIT, "loss": NUMBER}}
"""`summary.json` of `pretrain`."""

TRIAL_SUMMARY: Shape = {"trial": str, "validation": {"accuracy": NUMBER, "cross_entropy": NUMBER}}
"""`summary.json` of a short run of a search."""

METRICS: Shape = {"epoch": int, "step": int}
"""A line of `metrics.jsonl`; its other values are numbers, too."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run's `config.yaml` says, as far as it is read.

    The names are those of `Train` and `Pretrain`. Runs of earlier versions lack settings that have a default here.
    """

    data: str
    recipe: dict[str, Any]
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainedConfig(RunConfig):
    """That of a run of `train`; its rules are plain data, which `read_rules` makes rules of."""

    preset: str
    teacher: str | None
    rules: list[Any]
    pretrained: bool | str = True
    repair: bool = False
    image_size: int | None = None
    pairing: dict[str, Any] | None = None
    fraction: float = 1.0
    shots: int | None = None
    init: str | None = None
    init_parts: list[str] | None = None
    trained: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig(RunConfig):
    """That of a run of `pretrain`."""

    model: str


def misfit(content: object, shape: Shape, name: str = "it") -> str | None:
    """The first part of some content that does not fit a shape, in words; `None` if all fits."""
    if not isinstance(shape, dict):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        right = isinstance(content, kinds) and (not isinstance(content, bool) or bool in kinds)
        return None if right else f"{name} is {str(content)[:40]!r}"
    if not isinstance(content, dict):
        return f"{name} has no names with values"
    inside = "" if name == "it" else f"{name}."
    for key, part in shape.items():
        if key not in content:
            return f"{inside}{key} is missing"
        if found := misfit(content[key], part, f"{inside}{key}"):
            return found
    return None


def read_run_config(path: Path) -> TrainedConfig | PretrainedConfig:
    """Read a run's `config.yaml`.

    Raises:
        UserError: it is damaged, or not a run's.
    """
    content = read_mapping(path)
    kind = TrainedConfig if "preset" in content else PretrainedConfig
    hints = get_type_hints(kind)
    read = [f.name for f in fields(kind) if f.name in content or f.default is MISSING]
    if problem := misfit(content, {name: _kinds(hints[name]) for name in read}):
        raise UserError(f"{path} is not the configuration of a run ({problem}); restore it, or name another folder")
    return kind(**{name: content[name] for name in read})


def _kinds(hint: Any) -> tuple[type, ...]:
    """What values of a type are instances of; whole numbers are `float`, too."""
    kinds = [get_origin(part) or part for part in members(hint)]
    return (*kinds, int) if float in kinds else (*kinds,)


def read_summary(path: Path) -> dict[str, Any]:
    """Read a run's `summary.json`.

    Raises:
        UserError: it is damaged, or not a run's.
    """
    content = read_json(path)
    shapes = {"preset": TRAIN_SUMMARY, "trial": TRIAL_SUMMARY}
    problem = misfit(content, next((shape for key, shape in shapes.items() if key in content), PRETRAIN_SUMMARY))
    if problem is None:
        return content
    raise UserError(f"{path} is not the summary of a run ({problem}); {_AGAIN}")


_AGAIN = "remove it, and the command that began the run writes it again"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the rows of a `metrics.jsonl`, one an epoch; none if there is no such file yet.

    Raises:
        UserError: a line is damaged.
    """
    damaged: list[int] = []
    rows = list(_rows(path, damaged.append))
    if damaged:
        raise UserError(
            f"{path} is damaged in line {damaged[0]}; remove it and the run's summary.json, and the command that began "
            "the run writes both again"
        )
    return rows


def _rows(path: Path, damaged: Callable[[int], None]) -> Iterator[dict[str, float]]:
    if not path.is_file():
        return
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            damaged(number)
            continue
        if misfit(row, METRICS) or any(misfit(value, NUMBER) for value in row.values()):
            damaged(number)
        else:
            yield row
