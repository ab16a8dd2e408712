"""A run's metrics: means over an epoch, times, and the rows of `metrics.jsonl` and `metrics.csv`."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from attention_transfer.engine.distributed import total
from attention_transfer.viewing import Point, learning_curves, save
from attention_transfer.writing import write_whole

Row = dict[str, float]


class Means:
    """Weighted means of named scalars over the batches of all processes, summed in float32 or wider."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor], count: int) -> None:
        """Add means over so many images."""
        for name, value in values.items():
            wide = value.detach() if value.dtype == torch.float64 else value.detach().float()
            self._sums[name] = self._sums.get(name, torch.zeros_like(wide)) + wide * count
            self._counts[name] = self._counts.get(name, 0) + count

    def compute(self, processes: int) -> Row:
        """The means over all processes, by name in alphabetical order."""
        means = {}
        for name, value in sorted(self._sums.items()):
            count = total(torch.tensor(self._counts[name], device=value.device), processes)
            means[name] = float(total(value, processes) / count)
        return means


class Scores:
    """Loss terms of an evaluation and, where there are logits, cross-entropy, accuracy and calibration."""

    def __init__(self, device: torch.device, *, labelled: bool) -> None:
        self._means = Means()
        self._bins = Bins(device) if labelled else None

    def add(self, losses: Mapping[str, Tensor], logits: Tensor | None, targets: Tensor) -> None:
        """Add a batch with classes (B,)."""
        self._means.add(losses, len(targets))
        if logits is None:
            return
        self._means.add({"cross_entropy": F.cross_entropy(logits, targets)}, len(targets))
        if self._bins is not None:
            self._bins.add(logits, targets)

    def compute(self, processes: int) -> Row:
        """All scores over all processes, by name in alphabetical order."""
        of_classes = {} if self._bins is None else self._bins.compute(processes)
        return dict(sorted({**self._means.compute(processes), **of_classes}.items()))


class Bins:
    """How many images there are in each bin of confidence, how many of them are right, and the sum of confidences.

    Bins are those of `evaluation.reliability`: equal in width, each without its lower bound and with its upper one.
    """

    def __init__(self, device: torch.device, bins: int = 15) -> None:
        self._inner = torch.linspace(0, 1, bins + 1, device=device)[1:-1]
        self._sums = torch.zeros(3, bins, device=device)  # exact counts up to 2^24 images

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits (B, classes) of a batch with classes (B,)."""
        confidence, predicted = logits.detach().float().softmax(dim=-1).max(dim=-1)
        values = torch.stack([torch.ones_like(confidence), (predicted == targets).float(), confidence])
        self._sums.index_add_(1, torch.bucketize(confidence, self._inner), values)

    def compute(self, processes: int) -> Row:
        """Accuracy and expected calibration error (Guo et al. 2017) over all processes, both in [0, 1]."""
        images, right, confidence = total(self._sums.clone(), processes)
        error = (right - confidence).abs().sum() / images.sum()
        return {"accuracy": float(right.sum() / images.sum()), "calibration_error": float(error)}


class Stopwatch:
    """Times the steps of an epoch, and the waits for images between them."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._started = self._ended = time.perf_counter()
        self._waited, self._images = 0.0, 0

    def batch_is_here(self) -> None:
        """The wait for a batch is over."""
        self._waited += time.perf_counter() - self._ended

    def step_is_done(self, images: int) -> None:
        """A step with so many images of this process is done."""
        self._ended = time.perf_counter()
        self._images += images * self._processes

    def values(self) -> Row:
        """Images a second on all devices, and the share of the time in which this process waited for images."""
        seconds = max(self._ended - self._started, 1e-9)
        return {"images_per_second": self._images / seconds, "data_wait": self._waited / seconds}


class History:
    """The metrics of each epoch, which checkpoints hold too, and the seconds of training.

    Args:
        path: `metrics.jsonl`, beside which `metrics.csv` is written; `None` in a process that writes nothing.
        monitor: the value that the best epoch is chosen by, and whether more is better ("max") or less ("min").
    """

    def __init__(self, path: Path | None, monitor: tuple[str, str]) -> None:
        self.path = path
        self.monitor, mode = monitor
        self._sign = 1.0 if mode == "max" else -1.0
        self.rows: list[Row] = []
        self._earlier = 0.0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """In training, validation included, over all resumptions."""
        return self._earlier + time.monotonic() - self._began

    def resume(self, rows: list[Row], seconds: float) -> None:
        """Continue after these rows; those of epochs that are done again are dropped."""
        self.rows, self._earlier = list(rows), seconds
        self._began = time.monotonic()

    def add(self, row: Row) -> None:
        """Write the row of an epoch."""
        self.rows.append(row)
        self.write()

    @property
    def best(self) -> Row | None:
        """The first of the rows with the best validation; a value that is no number is worse than any."""
        return max(self._validated(), key=self._goodness, default=None)

    @property
    def validations_since_best(self) -> int:
        """How many validations in a row were not better than the best."""
        best = self.best
        return 0 if best is None else sum(row["epoch"] > best["epoch"] for row in self._validated())

    def note(self) -> str:
        """The last validation and the last epoch's speed in a few words."""
        validated, row = self._validated(), self.rows[-1]
        monitored = f"{self.monitor} {validated[-1][self.monitor]:.3f}, " if validated else ""
        speed, wait = row["time/images_per_second"], row["time/data_wait"]
        return f"{monitored}{speed:,.0f} images/s, {wait:.0%} waiting for them"

    def draw(self, path: Path, *, title: str) -> None:
        """Draw the monitored value over the epochs."""
        name = self.monitor
        points = [(row["epoch"], Point(row[name], row[name], row[name])) for row in self._validated()]
        curve = {title: {name.replace("/", " "): points}}
        save(learning_curves(curve, ylabel=name.replace("/", " "), percent=name.endswith("accuracy")), path)

    def _goodness(self, row: Row) -> float:
        value = self._sign * row[self.monitor]
        return -math.inf if math.isnan(value) else value

    def _validated(self) -> list[Row]:
        return [row for row in self.rows if self.monitor in row]

    def write(self) -> None:
        """Write the rows that there are."""
        if self.path is None:
            return
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        first = {"epoch": 0, "step": 1, "lr": 2}
        names = {name for row in self.rows for name in row}
        table = io.StringIO()
        writer = csv.DictWriter(table, sorted(names, key=lambda name: (first.get(name, len(first)), name)))
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path.with_suffix(".csv"), table.getvalue())


def last_step(path: Path) -> int:
    """The step of the last readable row of a `metrics.jsonl`; 0 if there is none."""
    for line in reversed(path.read_bytes().splitlines() if path.is_file() else []):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, LookupError, TypeError, RecursionError):
            continue
    return 0
