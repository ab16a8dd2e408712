"""What `compare --until-sure` saves on real runs of the digits, and whether it decides what ten fixed seeds decide.

    python -m benchmarks.until_sure FOLDER [--shots 5] [--epochs 40]   runs what is not there yet, then the table
    python -m benchmarks.until_sure --rows FILE                        the table of the rows of such a folder

Five methods are run with ten seeds each; where rows are read, with as many as all methods have. Each pair of methods is
a question, and so is the first one against all others at once. A question is asked twice: of all seeds, and by the
rounds of `--until-sure` with a budget of as many, which look at the same runs, for a run depends on its seed and its
settings alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from csv import DictReader, DictWriter
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from pathlib import Path

from attention_transfer import compare, pretrain
from attention_transfer.config.base import settings_of
from attention_transfer.config.training import Compare
from attention_transfer.config.values import brought
from attention_transfer.experiments.grid import Cell, grid_of
from attention_transfer.experiments.rows import Row, runs_of
from attention_transfer.experiments.statistics import Verdict, against
from attention_transfer.experiments.sure import Sure

METHODS = ("finetune", "gta", "l2sp", "copy", "scratch")
SEEDS = 10


@dataclass(frozen=True)
class Answer:
    """What was found, of each method against the first one, and how many runs that took of how many."""

    methods: tuple[str, ...]
    fixed: dict[str, Verdict]
    until_sure: dict[str, Verdict]
    seeds: dict[str, int]
    runs: int
    of: int

    @property
    def saved(self) -> int:
        """Runs that are not needed."""
        return self.of - self.runs


def asked(rows: Sequence[Row], methods: tuple[str, ...]) -> Answer:
    """Ask which of some methods are better than the first one, both ways; the rows are of one amount of labels."""
    runs = {name: own for name, own in runs_of(rows).items() if name in methods}
    seeds = min(map(len, runs.values()))
    labels = Compare(presets=list(methods), seeds="0", shots="1", until_sure=True, max_seeds=seeds)
    known = {(row.preset, row.seed): replace(row, labels="1 labels a class") for row in rows}

    def run(cells: Sequence[Cell]) -> list[Row]:
        return [known[cell.preset, cell.seed] for cell in cells]

    grid = grid_of(labels)
    sure, seen = Sure(labels, grid), run(grid)
    while more := sure.more(seen):
        seen += run(more)
    decided = sure.decided(seen)
    assert decided is not None
    (found,) = decided.decisions.values()
    whole = {name: {seed: own[seed] for seed in range(seeds)} for name, own in runs.items()}
    fixed = against(whole.pop(methods[0]), whole)
    return Answer(
        methods,
        {name: fixed[name].verdict for name in methods[1:]},
        {name: found[name].verdict for name in methods[1:]},
        {name: found[name].seeds for name in methods[1:]},
        len(seen),
        seeds * len(methods),
    )


def table(rows: Sequence[Row]) -> str:
    """Every question, and what they sum up to, as Markdown."""
    present = [name for name in METHODS if name in {row.preset for row in rows}]
    questions = [*combinations(present, 2), tuple(present)]
    answers = [asked(rows, methods) for methods in questions]
    lines = ["| question | all seeds | until sure | seeds | runs saved |", "|---|---|---|---:|---:|"]
    for answer in answers:
        first, *others = answer.methods
        title = f"{others[0]} against {first}" if len(others) == 1 else f"all against {first}"
        said = [", ".join(verdicts[name] for name in others) for verdicts in (answer.fixed, answer.until_sure)]
        seeds = ", ".join(str(answer.seeds[name]) for name in others)
        lines.append(f"| {title} | {said[0]} | {said[1]} | {seeds} | {answer.saved} of {answer.of} |")
    both = [(one.fixed[name], one.until_sure[name]) for one in answers for name in one.fixed]
    opposite = sum({fixed, sure} == {"better", "worse"} for fixed, sure in both)
    saved, whole = sum(one.saved for one in answers), sum(one.of for one in answers)
    lines += [
        "",
        f"{saved} of {whole} runs are saved ({saved / whole:.0%}). Of {len(both)} verdicts "
        f"{sum(fixed == sure for fixed, sure in both)} are equal, {opposite} opposite; "
        f"{sum(fixed != sure == 'undecided' for fixed, sure in both)} are decided by all seeds alone, "
        f"{sum(sure != fixed == 'undecided' for fixed, sure in both)} by looking alone.",
    ]
    return "\n".join(lines)


def measured(folder: Path, shots: int, epochs: int) -> list[Row]:
    """Run what is not there yet; the rows are kept in the folder without the places of the runs."""
    teacher = str(pretrain(epochs=epochs, out=str(folder / "teacher")).path)
    found = compare(
        list(METHODS), seeds=list(range(SEEDS)), shots=[shots], epochs=epochs, teacher=teacher, out=str(folder / "runs")
    )
    rows = [replace(row, run=Path(row.run).name) for row in found.rows]
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return rows


def read(path: Path) -> list[Row]:
    """Rows that were kept."""
    known = settings_of(Row)
    with path.open(newline="") as file:
        return [
            Row(**{name: brought(text, known[name].kind, name) for name, text in row.items() if text})
            for row in DictReader(file)
        ]


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/until-sure"))
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40, help="of the teacher, and of each run")
    parser.add_argument("--rows", type=Path)
    given = parser.parse_args()
    rows = read(given.rows) if given.rows else measured(given.folder, given.shots, given.epochs)
    seconds = sum(row.seconds for row in rows)
    print(f"{len(rows)} runs, {seconds / len(rows):.1f} s each, {rows[0].labels}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
