"""What the papers claim, held against committed rows: an effect with its interval, and whether it holds here.

    python -m benchmarks.claims table benchmarks/results/claims-2026-11-27
    python -m benchmarks.claims ensembles COMPARISON

The folder has a folder for each setting, with results.csv and teacher.csv of `attention-transfer compare --config
recipes/claims/SETTING.yaml`, ensembles.csv, which the second command writes into such a comparison's folder, and for
photographs attention.csv, which `benchmarks/photos/measure.py` writes.

A claim is of a difference that is paired over seeds. It holds where the 95 % interval (Student's t) is above 0 and the
exact two-sided sign-flip test has p < 0.05, which takes at least six seeds; it does not hold where both say that the
difference is below 0; otherwise it is undecided.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from attention_transfer import ensemble
from attention_transfer.experiments.rows import amount_of
from attention_transfer.experiments.statistics import Difference, judged, mean_interval

TITLES = {
    "scenes-20-labels": "20 labels a class",
    "scenes-5-labels": "5 labels a class",
    "shift-20-labels": "Backgrounds that shift, 20 labels a class",
    "photographs-5-labels": "A real network on photographs, 5 labels a class",
    "photographs-shift-20-labels": "A real network on photographs whose backgrounds shift, 20 labels a class",
    "fashion-10-labels": "Fashion-MNIST, 10 labels a class",
    "fashion-100-labels": "Fashion-MNIST, 100 labels a class",
    "fashion-10-labels-first-teacher": "Fashion-MNIST, 10 labels a class, first teacher, GTA with a weight of 0.1",
    "fashion-100-labels-first-teacher": "Fashion-MNIST, 100 labels a class, first teacher, GTA with a weight of 0.1",
    "fashion-layerscale": "A teacher with LayerScale, students with it and without, Fashion-MNIST, 10 labels a class",
}
"""Of the settings, in the order of docs/claims.md."""

_MEASURED = ("test_accuracy", "validation_accuracy", "attention_iou", "attention_share")
Values = NDArray[np.float64]
Runs = dict[str, dict[int, dict[str, float]]]
"""By method and seed: accuracy on test and validation, attention_iou and attention_share, in points."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the papers, and the difference, in points, that is above 0 where it is true."""

    text: str
    source: str
    effect: Callable[[Runs, int], float]


def _gain(better: str, worse: str, what: str = "test_accuracy") -> Callable[[Runs, int], float]:
    return lambda runs, seed: runs[better][seed][what] - runs[worse][seed][what]


def _most_of_the_gap(method: str) -> Callable[[Runs, int], float]:
    """Above 0 where a method goes more than half of the way from scratch to fine-tuning."""

    def effect(runs: Runs, seed: int) -> float:
        floor, top, found = (runs[name][seed]["test_accuracy"] for name in ("scratch", "finetune", method))
        return found - (floor + top) / 2

    return effect


def _beats_both(mix: str, *members: str) -> Callable[[Runs, int], float]:
    def effect(runs: Runs, seed: int) -> float:
        return runs[mix][seed]["test_accuracy"] - max(runs[name][seed]["test_accuracy"] for name in members)

    return effect


def _loses_more(method: str, other: str) -> Callable[[Runs, int], float]:
    """Above 0 where a method loses more from validation, which is as training is, to a test that is not."""

    def drop(found: dict[str, float]) -> float:
        return found["validation_accuracy"] - found["test_accuracy"]

    return lambda runs, seed: drop(runs[method][seed]) - drop(runs[other][seed])


SHIFTED = (
    Claim(
        "distilled attention loses more than fine-tuning where the background shifts",
        "Li et al. 2024",
        _loses_more("distill", "finetune"),
    ),
    Claim("copied attention loses more", "Li et al. 2024", _loses_more("copy", "finetune")),
    Claim("GTA loses less than fine-tuning", "Seo et al. 2024", _loses_more("finetune", "gta")),
    Claim("random weights lose more than fine-tuning", "–", _loses_more("scratch", "finetune")),
)
"""Of data whose background shifts from validation to test."""

LAYERSCALE = (
    Claim(
        "a standard student that copies the attention of a teacher with LayerScale is below random weights",
        "Qin et al. 2026",
        _gain("scratch, vit_standard", "copy, vit_standard"),
    ),
    Claim(
        "the same of a student that distils it",
        "Qin et al. 2026",
        _gain("scratch, vit_standard", "distill, vit_standard"),
    ),
    Claim(
        "a student with LayerScale copies it better than a standard one",
        "Qin et al. 2026",
        _gain("copy, vit_layerscale", "copy, vit_standard"),
    ),
    Claim(
        "the same of students that distil it",
        "Qin et al. 2026",
        _gain("distill, vit_layerscale", "distill, vit_standard"),
    ),
    Claim(
        "a student with LayerScale that copies it is above random weights",
        "Qin et al. 2026",
        _gain("copy, vit_layerscale", "scratch, vit_layerscale"),
    ),
    Claim(
        "the same of a student that distils it",
        "Qin et al. 2026",
        _gain("distill, vit_layerscale", "scratch, vit_layerscale"),
    ),
    Claim(
        "LayerScale helps random weights by itself",
        "–",
        _gain("scratch, vit_layerscale", "scratch, vit_standard"),
    ),
)
"""Of a teacher with LayerScale, and students that have it or not."""

CLAIMS = (
    Claim(
        "copied attention recovers most of what pre-training is worth (over half of the gap)",
        "Li et al. 2024",
        _most_of_the_gap("copy"),
    ),
    Claim(
        "distilled attention recovers most of it (over half of the gap)",
        "Li et al. 2024",
        _most_of_the_gap("distill"),
    ),
    Claim(
        "distilled attention recovers all of it (above fine-tuning)",
        "Li et al. 2024",
        _gain("distill", "finetune"),
    ),
    Claim(
        "an ensemble of the distilled student and the fine-tuned teacher beats both",
        "Li et al. 2024",
        _beats_both("distill + finetune", "distill", "finetune"),
    ),
    Claim(
        "a teacher that is fine-tuned first is better to distil from",
        "Li et al. 2024",
        _gain("tuned-distill", "distill"),
    ),
    Claim(
        "fine-tuning on few labels spoils where the network looks (IoU of the teacher less that of the fine-tuned)",
        "Seo et al. 2024",
        _gain("teacher", "finetune", "attention_iou"),
    ),
    Claim(
        "the same (share of the attention on the object)",
        "Seo et al. 2024",
        _gain("teacher", "finetune", "attention_share"),
    ),
    Claim(
        "GTA keeps where it looks (IoU of GTA less that of fine-tuning)",
        "Seo et al. 2024",
        _gain("gta", "finetune", "attention_iou"),
    ),
    Claim(
        "the same (share of the attention on the object)",
        "Seo et al. 2024",
        _gain("gta", "finetune", "attention_share"),
    ),
    Claim("GTA is more accurate than fine-tuning", "Seo et al. 2024", _gain("gta", "finetune")),
    Claim("GTA with TransMix is more accurate than GTA", "Seo et al. 2024", _gain("gta-transmix", "gta")),
    Claim("fine-tuning is more accurate than a linear probe", "–", _gain("finetune", "linear-probe")),
    Claim("GTA is more accurate than a linear probe", "–", _gain("gta", "linear-probe")),
)

SPECIAL = {"shift": SHIFTED, "layerscale": LAYERSCALE}
"""Further claims of settings in whose name a word is."""


def main() -> None:
    """Print the table of every setting in a folder, or write the ensembles of a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "ensembles"))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.what == "ensembles":
        write_ensembles(args.folder)
    else:
        print("\n\n".join(page(args.folder / name) for name in TITLES))


def write_ensembles(folder: Path) -> None:
    """Put the distilled and the fine-tuned student of each seed together, with equal weights, and test both as one."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in _rows(folder / "results.csv"):
        found.setdefault((row["labels"], row["seed"]), {})[row["preset"]] = row["run"]
    with (folder / "ensembles.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["labels", "seed", "test_accuracy"])
        for (labels, seed), runs in found.items():
            writer.writerow([labels, seed, ensemble([runs["distill"], runs["finetune"]]).test.accuracy])


def page(folder: Path) -> str:
    """The claims of one setting, and where its networks look, as Markdown."""
    ((_, runs),) = read(folder).items()  # a setting has one amount of labels
    lines = [f"## {TITLES[folder.name]}", "", "| claim | source | difference, points (95 %) | p | seeds | |"]
    lines += ["|---|---|---:|---:|---:|---|"]
    special = [claims for word, claims in SPECIAL.items() if word in folder.name]
    claims = [claim for group in (*special, CLAIMS) for claim in group]
    lines += [_line(claim, values) for claim in claims if len(values := differences(claim, runs)) > 1]
    lines += ["", *_looks(runs)]
    return "\n".join(lines)


def _line(claim: Claim, values: Values) -> str:
    found = judged_of(values)
    interval = found.interval
    effect = f"{interval.mean:+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"
    return (
        f"| {claim.text} | {claim.source} | {effect} | {found.p:.3f} | {found.seeds} | **{VERDICTS[found.verdict]}** |"
    )


def _looks(runs: Runs) -> list[str]:
    """A table of the accuracy of each method and, of data with masks, of where it looks.

    Intervals are over seeds (Student's t). Those of a seed's IoU over images (BCa) have a column of their own: half the
    width, mean over seeds.
    """
    teacher = runs["teacher"][0] if "teacher" in runs else None
    if teacher is None:
        lines = ["| method | test accuracy, % | seeds |", "|---|---:|---:|"]
        accuracies = {method: _over_seeds([*found.values()], "test_accuracy") for method, found in runs.items()}
        return lines + [f"| `{method}` | {accuracy} | {len(runs[method])} |" for method, accuracy in accuracies.items()]
    imaged = "iou_low" in teacher
    heads = ["method", "test accuracy, %", "attention IoU, %", *["± over images"] * imaged, "on the object, %", "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for method, found in runs.items():
        seeds = list(found.values())
        if "attention_iou" not in seeds[0]:
            continue
        own = method == "teacher"
        cells = ["the teacher, as it is" if own else f"`{method}`", "–" if own else _over_seeds(seeds, "test_accuracy")]
        cells.append(_over_seeds(seeds, "attention_iou"))
        if imaged:
            cells.append(f"{fmean(seed['iou_high'] - seed['iou_low'] for seed in seeds) / 2:.1f}")
        cells += [_over_seeds(seeds, "attention_share"), "–" if own else str(len(seeds))]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _over_seeds(seeds: Sequence[Mapping[str, float]], what: str) -> str:
    """A mean with its ±, where seeds make a difference."""
    values = [seed[what] for seed in seeds]
    interval = mean_interval(values)
    return f"{interval.mean:.1f}" + (f" ± {interval.half_width:.1f}" if min(values) < max(values) else "")


VERDICTS = {"better": "holds", "worse": "does not hold", "undecided": "undecided"}


def judged_of(values: Values) -> Difference:
    """What an effect's values, one a seed, say about 0."""
    return judged(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))


def differences(claim: Claim, runs: Runs) -> Values:
    """The effect for each seed that has what the claim speaks of."""
    seeds = sorted({seed for method in runs.values() for seed in method})
    return np.array(list(_there(claim, runs, seeds)))


def _there(claim: Claim, runs: Runs, seeds: Sequence[int]) -> Iterator[float]:
    for seed in seeds:
        try:
            yield claim.effect(runs, seed)
        except KeyError:  # a method or a measurement that this setting does not have
            continue


def read(folder: Path) -> dict[str, Runs]:
    """Rows of a setting by amount of labels, in points; the teacher's own attention goes with every seed.

    What else is varied, e.g. the student, is a part of the method's name.
    """
    found: dict[str, Runs] = {}
    for row in _rows(folder / "results.csv"):
        kept = {name: 100 * float(row[name]) for name in _MEASURED if row.get(name)}
        number, unit, settings = amount_of(row["labels"])
        method = ", ".join([row["preset"], *(value.rpartition(":")[2] for value in settings.values())])
        found.setdefault(f"{number:g}{unit}", {}).setdefault(method, {})[int(row["seed"])] = kept
    for row in _rows(folder / "attention.csv"):  # of data whose masks the comparison itself does not know
        seen = {name: 100 * float(value) for name, value in row.items() if name not in ("labels", "preset", "seed")}
        found[row["labels"]][row["preset"]][int(row["seed"])] |= seen
    for row in _rows(folder / "ensembles.csv"):
        accuracy = {"test_accuracy": 100 * float(row["test_accuracy"])}
        found[row["labels"]].setdefault("distill + finetune", {})[int(row["seed"])] = accuracy
    for row in _rows(folder / "teacher.csv"):
        for runs in found.values():
            seeds = {seed for method in runs.values() for seed in method}
            runs["teacher"] = {seed: {name: 100 * float(row[name]) for name in row} for seed in seeds}
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
