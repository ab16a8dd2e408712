"""What the engine adds to Lightning's loop: averaged weights, metrics files, whole checkpoints, stopping."""

from __future__ import annotations

import csv
import io
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from attention_transfer.training.progress import Bar
from attention_transfer.training.run_folder import RunFolder, write_whole


class Interrupted(Exception):
    """The user asked to stop; the run can be resumed from its last checkpoint."""


class AveragedWeights(WeightAveraging):
    """Exponential moving average with warm-up: decay min(decay, (1 + n)/(10 + n)) after n steps.

    Without warm-up a short training would be judged by its initial weights.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
            warmed_up = min(decay, (1 + int(count)) / (10 + int(count)))
            torch._foreach_lerp_(averaged, current, 1 - warmed_up)

        super().__init__(use_buffers=False, multi_avg_fn=average)


class MetricsWriter(Callback):
    """Writes a line of `metrics.jsonl` an epoch, and `metrics.csv` from it; counts the seconds of training."""

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.path / "metrics.jsonl"
        self.seconds = 0.0
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far, for a resumed run."""
        return {"seconds": self.seconds + time.monotonic() - self._since if self._since else self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the count up again."""
        self.seconds = float(state_dict["seconds"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Drop the lines of epochs that a resumed run does again."""
        self._since = time.monotonic()
        kept = [row for row in read_metrics(self.path) if row["epoch"] <= trainer.current_epoch]
        self._write(kept)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Append the epoch's means; validation terms are there in the epochs that had a validation."""
        validated = trainer.fit_loop.epoch_loop._should_check_val_epoch()
        values = {
            name: float(value)
            for name, value in sorted(trainer.callback_metrics.items())
            if name.startswith("train/") or (validated and name.startswith("validation/"))
        }
        lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": lr, **values}
        self._write([*read_metrics(self.path), row])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Stop the clock."""
        self.seconds += time.monotonic() - self._since
        self._since = 0.0

    def _write(self, rows: list[dict[str, float]]) -> None:
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        columns = sorted({name for row in rows for name in row}, key=lambda name: (_FIRST.get(name, len(_FIRST)), name))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path.with_suffix(".csv"), table.getvalue())


_FIRST = {"epoch": 0, "step": 1, "lr": 2}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`, one an epoch; none where there is no such file yet."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


class ShowProgress(Callback):
    """Moves a bar with every step and notes the last validation."""

    def __init__(self, bar: Bar, monitor: str) -> None:
        self.bar = bar
        self.monitor = monitor

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """A step is done."""
        self.bar.advance()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Show the monitored value."""
        if self.monitor in trainer.callback_metrics:
            self.bar.note(f"{self.monitor} {float(trainer.callback_metrics[self.monitor]):.3f}")


class StopOnRequest(Callback):
    """The first Ctrl-C stops after the step in hand; the second stops at once."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C over inside the block, where signals can be listened for at all."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._request)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Stop where it was asked for."""
        if self.requested:
            raise Interrupted

    def _request(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.requested = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # every file is written whole, so nothing is lost by dying here


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are written whole or not at all, and read without running code from them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:  # noqa: ARG002
        """Write a temporary file, then put it in place."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        torch.save(checkpoint, temporary)
        temporary.replace(target)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:  # noqa: ARG002
        """Read tensors and plain values only."""
        return dict(torch.load(path, map_location=map_location or "cpu", weights_only=True))
