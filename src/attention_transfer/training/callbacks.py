"""What the engine adds to Lightning's loop: averaged weights, metrics files, whole checkpoints, stopping."""

from __future__ import annotations

import csv
import io
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, WeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from attention_transfer.errors import Interrupted, UserError
from attention_transfer.training.loggers import log_row
from attention_transfer.training.progress import Bar
from attention_transfer.training.run_files import readable_metrics
from attention_transfer.training.run_folder import RunFolder
from attention_transfer.training.sharding import Sharded, shard
from attention_transfer.ui import show_cursor
from attention_transfer.writing import write_whole

_Tensors = tuple[Tensor, ...] | list[Tensor]


class AveragedWeights(WeightAveraging):
    """Exponential moving average with warm-up: decay min(decay, (1 + n)/(10 + n)) after n steps.

    Without warm-up a short training would be judged by its initial weights.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
            warmed_up = min(decay, (1 + int(count)) / (10 + int(count)))
            torch._foreach_lerp_(averaged, current, 1 - warmed_up)

        super().__init__(use_buffers=False, multi_avg_fn=average)
        self._average = average

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the average where the weights will be, and in shares where they will be so; they follow later."""
        self._device = trainer.strategy.root_device
        if not isinstance(trainer.strategy, Sharded):
            super().setup(trainer, pl_module, stage)
        elif stage == "fit":
            # Of a module that is still whole: one in shares can't be copied.
            self._average_model = AveragedModel(pl_module, torch.device("cpu"), multi_avg_fn=self._average)
            shard(cast(nn.Module, self._average_model.module.objective), trainer.strategy.mesh)


class Stopwatch(Callback):
    """Times the steps of an epoch, and the waits for images between them."""

    def __init__(self) -> None:
        self._started = self._ended = 0.0
        self._waited = 0.0
        self._images = 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Begin."""
        self._started = self._ended = time.perf_counter()
        self._waited, self._images = 0.0, 0

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """A batch is here."""
        self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """A step is done."""
        self._ended = time.perf_counter()
        self._images += len(batch[0]) * trainer.world_size

    def values(self) -> dict[str, float]:
        """Images a second on all devices, and the share of the time in which this process waited for images."""
        seconds = max(self._ended - self._started, 1e-9)
        return {"images_per_second": self._images / seconds, "data_wait": self._waited / seconds}


Source = Callable[[], Mapping[str, float]]
"""Gives an epoch's values by name, when the epoch ends; none where there is nothing to say."""


class MetricsWriter(Callback):
    """Writes a line of `metrics.jsonl` an epoch, and `metrics.csv` from it; counts the seconds of training.

    Must follow the callbacks whose values it writes.

    Args:
        folder: the run's.
        sources: where values come from besides the module's log, by the group that they are written under: those of
            "time" become `time/data_wait` and so on.
        loggers: who else gets the lines.
        done: epochs that a resumed run has behind it.
    """

    def __init__(
        self, folder: RunFolder, sources: Mapping[str, Source], loggers: Sequence[Logger] = (), *, done: int = 0
    ) -> None:
        self.path = folder.path / "metrics.jsonl"
        self.sources = sources
        self.loggers = loggers
        self.done = done
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self._since = 0.0
        self._taken_up = False

    def state_dict(self) -> dict[str, Any]:
        """Rows and seconds so far, for a resumed run: it needs no file but its checkpoint."""
        seconds = self.seconds + time.monotonic() - self._since if self._since else self.seconds
        return {"seconds": seconds, "rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take both up again, and drop the lines of epochs that are done again."""
        self.seconds = float(state_dict["seconds"])
        # Runs of earlier versions have their rows in the file alone.
        self.rows = list(state_dict["rows"] if "rows" in state_dict else readable_metrics(self.path))

    def _take_up(self, trainer: L.Trainer) -> None:
        """Write what there is.

        Raises:
            UserError: rows are lost.
        """
        self._taken_up = True
        self.rows = [row for row in self.rows if row["epoch"] <= self.done]
        if lost := set(range(1, self.done + 1)) - {int(row["epoch"]) for row in self.rows}:
            raise UserError(f"{self.path} has lost epoch {min(lost)}; restore it, or start again with --overwrite")
        if trainer.is_global_zero:
            self._write()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Start the clock; with weights in shares, no hook before this one has the checkpoint's rows.

        Raises:
            UserError: rows are lost.
        """
        self._take_up(trainer)
        self._since = time.monotonic()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Write what there is where no epoch was left to do."""
        if not self._taken_up:
            self._take_up(trainer)

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
        for group, values_of in self.sources.items():
            row |= {f"{group}/{name}": value for name, value in values_of().items()}
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write()
            log_row(self.loggers, row)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Stop the clock."""
        self.seconds += time.monotonic() - self._since
        self._since = 0.0

    def _write(self) -> None:
        rows = self.rows
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        columns = sorted({name for row in rows for name in row}, key=lambda name: (_FIRST.get(name, len(_FIRST)), name))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path.with_suffix(".csv"), table.getvalue())


_FIRST = {"epoch": 0, "step": 1, "lr": 2}


class ShowProgress(Callback):
    """Moves a bar with every step, and notes the speed and the last validation."""

    def __init__(self, bar: Bar, monitor: str, clock: Stopwatch) -> None:
        self.bar = bar
        self.monitor = monitor
        self.clock = clock
        self._validated = ""

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """A step is done."""
        self.bar.advance()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Show how fast it goes, and what for."""
        if self.monitor in trainer.callback_metrics:
            self._validated = f"{self.monitor} {float(trainer.callback_metrics[self.monitor]):.3f}, "
        times = self.clock.values()
        speed, wait = times["images_per_second"], times["data_wait"]
        self.bar.note(f"{self._validated}{speed:,.0f} images/s, {wait:.0%} waiting for them")


class StopEarly(EarlyStopping):
    """Ends the training after so many validations in a row without a better one."""

    def __init__(self, monitor: str, mode: str, validations: int) -> None:
        super().__init__(monitor, mode=mode, patience=validations, check_finite=False)

    @property
    def state_key(self) -> str:
        """Where its state lies in a checkpoint."""
        return "StopEarly"


class StopOnRequest(Callback):
    """The first Ctrl-C or SIGTERM stops after the step in hand, or the batch that is tested; the second at once."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take both signals over inside the block, where they can be listened for at all, and are not ignored.

        Raises:
            Interrupted: the process was told to end.
        """
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        heard: list[signal.Signals] = []
        if threading.current_thread() is threading.main_thread():  # ignored as in the background of a script
            heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
        for number in heard:
            signal.signal(number, self._request)
        try:
            yield
        except SIGTERMException as error:  # of Lightning; it would end the process with code 0, as if all were done
            raise Interrupted from error
        finally:
            for number in heard:
                signal.signal(number, before[number])

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Stop where it was asked for."""
        if self.requested:
            raise Interrupted

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Stop here too; Lightning itself would leave with code 1, and say nothing."""
        if self.requested:
            raise Interrupted

    def _request(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.requested = True
        show_cursor()  # for which the second leaves no time
        signal.signal(number, signal.SIG_DFL)  # every file is written whole, so nothing is lost by dying here
