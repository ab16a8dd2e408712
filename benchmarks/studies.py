"""What a study costs: the share of a comparison's time that is spent in it, by 1 and 2 workers, and after kills.

    python -m benchmarks.studies FOLDER [--runs 60]
    python -m benchmarks.studies FOLDER --minutes 10    chaos alone: workers are killed at random for so long

Trains 60 tiny networks of 2 epochs on 10 images of the digits. Time in the study is that of claiming, recording and
reading runs and of writing tables, in the process that trains.

Chaos takes one comparison after the other, of two workers, and kills a worker or the whole command every 3 to 20
seconds, which is then given again. Each table must equal that of an undisturbed comparison in all but times and
places; no run may be recorded twice, or trained again once it was tested.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attention_transfer import Recipe, compare, pretrain
from attention_transfer.experiments.cells import Cells
from attention_transfer.experiments.studies import Study

TIMES = ("seconds", "run")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--pause", type=float, default=20, help="most seconds between two kills of chaos")
    given = parser.parse_args()
    teacher = str(pretrain(epochs=1, out=str(given.folder / "teacher")).path)
    seeds = list(range(given.runs // 3))
    settings: dict[str, Any] = {"presets": "scratch,finetune,gta", "seeds": seeds, "shots": "1", "teacher": teacher}
    settings["recipe"] = Recipe(epochs=2, batch_size=10, workers=0)
    if given.minutes is not None:
        _chaos(settings, given.folder, given.minutes, given.pause)
        return
    spent, began = _timed(settings, given.folder / "one")
    inside = spent["claim"] + spent["finish"] + spent["entries"] + spent["add"] + spent["_write"]
    bare = spent["compute"]
    print(f"{given.runs} runs: {bare:.1f} s bare, {inside:.2f} s in the study: {inside / bare:.2%}")
    print(f"wall with 1 worker: {began:.1f} s (figures and page included)")
    start = time.perf_counter()
    compare(**settings, workers=2, out=str(given.folder / "two"))
    print(f"wall with 2 workers: {time.perf_counter() - start:.1f} s")
    kills = _disturbed(settings, given.folder / "three", random.Random(0), kills=given.kills)
    same = _table(given.folder / "one") == _table(given.folder / "two") == _table(given.folder / "three")
    print(f"{kills} kills: the tables {'are equal' if same else 'DIFFER'}")


def _chaos(settings: dict[str, Any], folder: Path, minutes: float, pause: float) -> None:
    """Disturb one comparison after the other until the time is over, and look at each."""
    compare(**settings, workers=2, out=str(folder / "undisturbed"))
    expected, rng = _table(folder / "undisturbed"), random.Random(0)
    until, kills, number = time.monotonic() + 60 * minutes, 0, 0
    while time.monotonic() < until:
        number += 1
        out = folder / f"chaos-{number}"
        kills += _disturbed(settings, out, rng, until=until, pause=pause)
        said = [f"table {'is equal' if _table(out) == expected else 'DIFFERS'}", *_twice(out)]
        print(f"comparison {number}, {kills} kills so far: {'; '.join(said)}", flush=True)


def _twice(folder: Path) -> list[str]:
    """Runs that are in the study more than once, or were trained again after they had been tested; or that none is."""
    study = Study.there(folder, storage=None)
    recorded = Counter(trial.user_attrs["run"] for trial in study.storage.get_all_trials(study.ident))
    logs = {path.parent.name: path.read_text().count(": test accuracy ") for path in folder.glob("runs/*/log.txt")}
    twice = [f"RECORDED {count} TIMES: {name}" for name, count in recorded.items() if count != 1]
    twice += [f"TESTED {count} TIMES: {name}" for name, count in logs.items() if count != 1]
    return twice or [f"{len(recorded)} runs, each recorded and tested once"]


def _timed(settings: dict[str, Any], out: Path) -> tuple[dict[str, float], float]:
    """Seconds in each part, and in all, of a comparison in this process."""
    spent: dict[str, float] = {}
    for kind, names in ((Study, ("claim", "finish", "entries", "add")), (Cells, ("compute", "_write"))):
        for name in names:
            setattr(kind, name, _counting(getattr(kind, name), name, spent))
    start = time.perf_counter()
    compare(**settings, out=str(out))
    return spent, time.perf_counter() - start


def _counting(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    def counted(*args: Any, **options: Any) -> Any:
        outer = spent.get("depth", 0.0)
        spent["depth"], start = outer + 1, time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            spent["depth"] = outer
            spent[name] = spent.get(name, 0.0) + (time.perf_counter() - start if not outer else 0.0)

    return counted


def _disturbed(
    settings: dict[str, Any],
    out: Path,
    rng: random.Random,
    *,
    kills: float = float("inf"),
    until: float = float("inf"),
    pause: float = 12,
) -> int:
    """The same grid by a command of two workers, of which one or the whole command is killed now and then.

    It is killed so often, and until then; the command is given again until it ends by itself.
    """
    done, recipe = 0, settings["recipe"]
    words = [sys.executable, "-m", "attention_transfer", "compare", "--workers", "2", "--out", str(out)]
    for name in ("presets", "shots", "teacher"):
        words += [f"--{name}", settings[name]]
    words += ["--seeds", ",".join(map(str, settings["seeds"])), "--recipe.epochs", str(recipe.epochs)]
    words += ["--recipe.batch-size", str(recipe.batch_size), "--recipe.workers", "0"]
    while True:
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            time.sleep(rng.uniform(3, pause))
            if done >= kills or time.monotonic() > until or process.poll() is not None:
                continue
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(rng.choice([process.pid, *map(int, children)]), signal.SIGKILL)
            done += 1
        if process.returncode == 0:
            return done


def _table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


if __name__ == "__main__":
    main()
