"""The regret of the defaults: how much better the best of a grid of rates and weights is on validation.

    python -m benchmarks.regret run ROWS.jsonl --teacher TEACHER --data DATA [--shots 5,20] [--presets a,b] [--seeds 0]
        [--rates 1,3] [--weights 1,0.3]
    python -m benchmarks.regret table ROWS.jsonl

`run` appends a row for each trial that is finished, and skips those that are there, so that it may be stopped and
started at will: first every preset's defaults, then other rates, then other weights of its rule. Rates and weights are
factors on what the recipe comes to by itself. The test split plays no part in the rows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from attention_transfer import train
from attention_transfer.config.choices import Augment
from attention_transfer.training import RunFolder
from attention_transfer.training.run_files import TrainedConfig
from attention_transfer.training.train import Run
from attention_transfer.transfer import LossRule, NetworkRule, Rule, preset
from attention_transfer.transfer.rule_data import read_rules

PRESETS = "finetune,gta,linear-probe,l2sp,distill,copy"
RATES = (1.0, 3.0, 1 / 3, 10.0, 0.1, 30.0)
WEIGHTS = (1.0, 3.0, 1 / 3)
WEIGHTED = LossRule | NetworkRule


@dataclass(frozen=True)
class Trial:
    """One training: what is compared, and by which factors it departs from the defaults."""

    data: str
    shots: int
    preset: str
    seed: int
    rate: float = 1.0
    weight: float = 1.0
    image_size: int | None = None
    epochs: int | None = None
    augment: Augment = "auto"


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("rows", type=Path)
    parser.add_argument("--teacher")
    parser.add_argument("--data")
    parser.add_argument("--shots", default="5,20")
    parser.add_argument("--presets", default=PRESETS)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rates", default=",".join(map(repr, RATES)), help="factors, in order")
    parser.add_argument("--weights", default=",".join(map(repr, WEIGHTS)), help="factors, in order")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--epochs", type=int, help="in place of the defaults' length, the same for all")
    parser.add_argument("--augment", default="auto", help="none, where images that move lose what they show")
    args = parser.parse_args()
    if args.what == "table":
        print(table(read(args.rows)))
        return
    if args.teacher is None or args.data is None:
        parser.error("run needs --teacher and --data")
    done = {trial_of(row) for row in read(args.rows)}
    for trial in grid(args):
        if trial not in done:
            append(args.rows, asdict(trial) | score(trial, args.teacher))


def grid(args: argparse.Namespace) -> Iterator[Trial]:
    """Every trial, the defaults first."""
    settings: dict[str, Any] = {"data": args.data, "image_size": args.image_size, "epochs": args.epochs}
    settings["augment"] = args.augment
    cells = [
        Trial(shots=int(shots), preset=name, seed=int(seed), **settings)
        for seed in args.seeds.split(",")
        for shots in args.shots.split(",")
        for name in args.presets.split(",")
    ]
    rates, weights = ([float(factor) for factor in given.split(",")] for given in (args.rates, args.weights))
    for weight in weights:
        for rate in rates:
            varied = cells if weight == 1 else [cell for cell in cells if has_weight(cell.preset)]
            yield from (replace(cell, rate=rate, weight=weight) for cell in varied)


def has_weight(name: str) -> bool:
    """Whether a preset has a rule with a weight."""
    return any(isinstance(rule, WEIGHTED) for rule in preset(name).rules)


def score(trial: Trial, teacher: str) -> dict[str, Any]:
    """Validation accuracy and cross-entropy, the settings that they were got with, and the time."""
    lr, rules = None, None
    if (trial.rate, trial.weight) != (1, 1):
        lr, rules = defaults(replace(trial, rate=1.0, weight=1.0, seed=0), teacher)
        lr *= trial.rate
        rules = [replace(r, weight=r.weight * trial.weight) if isinstance(r, WEIGHTED) else r for r in rules]
    with tempfile.TemporaryDirectory() as scratch:
        run = trained(trial, teacher, f"{scratch}/run", lr=lr, rules=rules)
        settings = RunFolder(run.path).config().recipe
    kept = {name: settings[name] for name in ("lr", "batch_size")}
    values = run.summary["validation"]
    scores = {f"validation_{name}": values[name] for name in ("accuracy", "cross_entropy", "images")}
    row: dict[str, Any] = kept | scores | run.summary["train"]
    return row


@cache
def defaults(trial: Trial, teacher: str) -> tuple[float, list[Rule]]:
    """The rate and the rules that a preset comes to by itself, from the configuration of a training of one epoch."""
    with tempfile.TemporaryDirectory() as scratch:
        run = trained(replace(trial, epochs=1), teacher, f"{scratch}/run")
        settings = RunFolder(run.path).config()
    assert isinstance(settings, TrainedConfig)
    return float(settings.recipe["lr"]), read_rules(settings.rules)


def trained(trial: Trial, teacher: str, out: str, *, lr: float | None = None, rules: list[Rule] | None = None) -> Run:
    """A training by a preset, with another rate and other rules where they are given."""
    recipe = replace(preset(trial.preset).own_recipe, augment=trial.augment)
    recipe = recipe if lr is None else replace(recipe, lr=lr)
    settings: dict[str, Any] = {"teacher": teacher, "data": trial.data, "shots": trial.shots, "seed": trial.seed}
    settings |= {"image_size": trial.image_size, "epochs": trial.epochs, "rules": rules, "recipe": recipe}
    return train(trial.preset, **settings, out=out, loggers=[])


def read(path: Path) -> list[dict[str, Any]]:
    """The rows that are there; one that was cut off by a kill is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def append(path: Path, row: dict[str, Any]) -> None:
    """Write one row, and see it to the disk."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def trial_of(row: dict[str, Any]) -> Trial:
    """The trial that a row is of."""
    return Trial(**{name: row[name] for name in asdict(Trial("", 0, "", 0))})


def table(rows: list[dict[str, Any]]) -> str:
    """Default, best of the grid and their difference, in points, means over the seeds that both have.

    Beside the regret is the half width of the 95 % interval of a difference of two accuracies on so many validation
    images, as if they were independent; the best of many trials is above the default by chance alone.
    """
    cells: dict[tuple[str, int, str], dict[tuple[float, float], dict[int, float]]] = defaultdict(dict)
    for row in rows:
        cell = cells[Path(row["data"]).name, row["shots"], row["preset"]]
        cell.setdefault((row["rate"], row["weight"]), {})[row["seed"]] = 100 * row["validation_accuracy"]
    images = {Path(row["data"]).name: row.get("validation_images") for row in rows}
    heads = "data | labels a class | preset | default | best | at rate × | at weight × | regret | ± | trials | seeds"
    lines = [f"| {heads} |", "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for (data, shots, name), found in sorted(cells.items()):
        if (own := found.get((1.0, 1.0))) is None:
            continue
        complete = {factors: scores for factors, scores in found.items() if scores.keys() >= own.keys()}
        best = max(complete, key=lambda factors: mean(complete[factors][seed] for seed in own))
        ours, theirs = mean(own.values()), mean(complete[best][seed] for seed in own)
        shown = f"{ours:.1f} | {theirs:.1f} | {best[0]:.2g} | {best[1]:.2g} | {theirs - ours:.1f}"
        shown += f" | {half_width(ours, theirs, len(own) * count):.1f}" if (count := images[data]) else " | –"
        lines.append(f"| {data} | {shots} | {name} | {shown} | {len(complete)} | {len(own)} |")
    return "\n".join(lines)


def half_width(a: float, b: float, images: int) -> float:
    """Of the 95 % interval of a difference of two accuracies, in points, on so many images each."""
    return 1.96 * math.sqrt((a * (100 - a) + b * (100 - b)) / images)


if __name__ == "__main__":
    main()
