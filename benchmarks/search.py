"""Search the learning rate and the weight of each preset on the validation split of the embedded digits.

The learning rate first, at the preset's weight; then the weight, at the best rate. Each trial is a line of OUT with the
validation accuracy of each seed; trials that are there already are not run again. The test split plays no part: the
score is the validation accuracy, and the seeds are others than those of the results.

    python benchmarks/search.py TEACHER OUT.jsonl [--presets a,b] [--shots 5] [--seeds 10,11,12]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import attention_transfer as at
from attention_transfer import train
from attention_transfer.training import Recipe
from attention_transfer.transfer import PRESETS

RATES = {"random": (4e-3, 8e-3, 1.6e-2, 3.2e-2), "teacher": (2e-3, 4e-3, 8e-3, 1.6e-2)}
OTHER_RATES = {"linear-probe": (1e-2, 2e-2, 5e-2, 1e-1)}
FACTORS = (0.1, 0.3, 3.0)  # of the preset's weight, beside the weight itself


def main() -> None:
    """Run the trials that are missing, and print the best of each preset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher")
    parser.add_argument("out", type=Path)
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--seeds", default="10,11,12")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        trials = Trials(args.out, args.teacher, args.shots, seeds, Path(scratch))
        for name in args.presets.split(","):
            best = search(name, trials)
            print(f"{name}: lr {best['lr']:g}, weight {best['weight']}, validation {best['mean']:.3f}", flush=True)


def search(name: str, trials: Trials) -> dict[str, Any]:
    """The best trial of a preset."""
    method = PRESETS[name]
    weight = next((rule.weight for rule in method.rules if hasattr(rule, "weight")), None)
    tried = [trials.result(name, lr, weight) for lr in OTHER_RATES.get(name, RATES[method.init])]
    best = max(tried, key=lambda trial: trial["mean"])
    if weight is not None:
        tried = [best, *(trials.result(name, best["lr"], round(weight * factor, 6)) for factor in FACTORS)]
        best = max(tried, key=lambda trial: trial["mean"])
    return best


class Trials:
    """Trials on file."""

    def __init__(self, out: Path, teacher: str, shots: int, seeds: list[int], scratch: Path) -> None:
        self.out, self.teacher, self.shots, self.seeds, self.scratch = out, teacher, shots, seeds, scratch
        self.done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        self.tuned: dict[int, str] = {}

    def result(self, name: str, lr: float, weight: float | None) -> dict[str, Any]:
        """A trial from the file, or run now."""
        key = {"preset": name, "lr": lr, "weight": weight, "shots": self.shots, "seeds": self.seeds}
        for trial in self.done:
            if {k: trial[k] for k in key} == key:
                return dict(trial)
        scores = [self._score(name, lr, weight, seed) for seed in self.seeds]
        trial = key | {"validation": scores, "mean": sum(scores) / len(scores)}
        self.done.append(trial)
        with self.out.open("a") as file:
            file.write(json.dumps(trial) + "\n")
        return trial

    def _score(self, name: str, lr: float, weight: float | None, seed: int) -> float:
        method = PRESETS[name]
        changed: dict[str, Any] = {} if weight is None else {"weight": weight}
        rules: list[at.Rule] = [replace(rule, **changed) for rule in method.rules]
        run = train(
            name,
            teacher=self._tuned(seed) if method.tune_teacher else self.teacher,
            tune_teacher=False,
            shots=self.shots,
            seed=seed,
            rules=rules,
            recipe=Recipe(**{**method.recipe, "lr": lr}),  # type: ignore[arg-type]
            out=str(self.scratch / f"{name}-{lr}-{weight}-{seed}"),
        )
        return float(run.summary["validation"]["accuracy"])

    def _tuned(self, seed: int) -> str:
        """The teacher, fine-tuned once a seed."""
        if seed not in self.tuned:
            place = str(self.scratch / f"tuned-{seed}")
            train("finetune", teacher=self.teacher, shots=self.shots, seed=seed, out=place)
            self.tuned[seed] = place
        return self.tuned[seed]


if __name__ == "__main__":
    main()
