"""Read the files of a run's folder and check them against the shapes that are declared here.

A file that does not fit, because it is damaged or not a run's, is named in one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attention_transfer.errors import UserError
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.text_files import read_json

Shape = type | tuple[type, ...] | dict[str, Any]
"""What a value must be: of a type, or an object with at least these keys."""

NUMBER = (int, float)
_TEXT_OR_NONE = (str, type(None))

TRAINED: Shape = {"preset": str, "data": str, "rules": list, "recipe": dict, "teacher": _TEXT_OR_NONE}
"""The part of `train`'s `config.yaml` that is read."""

PRETRAINED: Shape = {"model": str, "data": str, "recipe": dict}
"""The part of `pretrain`'s `config.yaml` that is read."""

DEFAULTS = {
    "pretrained": True,
    "image_size": None,
    "pairing": None,
    "shots": None,
    "fraction": 1.0,
    "pool": None,
    "repair": False,
}
"""Values of settings that runs of earlier versions lack."""

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


def misfit(content: object, shape: Shape, name: str = "it") -> str | None:
    """The first part of some content that does not fit a shape, in words; `None` if all fits."""
    if not isinstance(shape, dict):
        right = isinstance(content, shape) and (not isinstance(content, bool) or shape is bool)
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


def read_config_of_run(path: Path) -> dict[str, Any]:
    """Read a run's `config.yaml`; settings that a run of an earlier version lacks get their defaults.

    Raises:
        UserError: it is damaged, or not a run's.
    """
    content = read_mapping(path)
    if problem := misfit(content, TRAINED if "preset" in content else PRETRAINED):
        raise UserError(f"{path} is not the configuration of a run ({problem}); restore it, or name another folder")
    return {**DEFAULTS, **content} if "preset" in content else content


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
