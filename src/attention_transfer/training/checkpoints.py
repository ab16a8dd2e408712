"""Checkpoints of a run: when they are written, that they are whole, and reading them without running code from them."""

from __future__ import annotations

import logging
import math
import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from attention_transfer.errors import UserError
from attention_transfer.training.run_folder import RunFolder
from attention_transfer.writing import whole_file

log = logging.getLogger("attention_transfer")

_HELD = ("epoch", "global_step", "state_dict", "callbacks")


class Keeper(Checkpoint):
    """Writes `best.ckpt` where a validation is better than all before it, then `last.ckpt`, at every validation.

    Lightning's own callback writes its last checkpoint only along with a new best one, and forgets the best one where
    the folder has moved.
    """

    def __init__(self, folder: RunFolder, monitor: str, mode: str) -> None:
        self.best = folder.best_checkpoint
        self.last = folder.checkpoints / "last.ckpt"
        self.monitor = monitor
        self.sign = 1.0 if mode == "max" else -1.0
        self.best_value: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best_value": self.best_value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.best_value = state_dict["best_value"]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """The last callback of an epoch, so that a checkpoint has the states of all."""
        if not trainer.fit_loop.epoch_loop._should_check_val_epoch():
            return
        value = self.sign * float(trainer.callback_metrics[self.monitor])
        best = self.best_value
        # The best before the last: a run that dies in between does this epoch again, and writes the same once more.
        if best is None or value > best or (math.isnan(best) and not math.isnan(value)):
            self.best_value = value
            trainer.save_checkpoint(self.best)
        trainer.save_checkpoint(self.last)


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are written whole or not at all, and read without running code from them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:  # noqa: ARG002
        """Write a temporary file, then put it in place."""
        with whole_file(Path(path)) as temporary, temporary.open("wb") as file:  # by a path, torch would not say why
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:  # noqa: ARG002
        """Read tensors and plain values only."""
        return dict(torch.load(path, map_location=map_location or "cpu", weights_only=True))


def newest_checkpoint(folder: RunFolder) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that a run goes on from, and its content; `None` where it has none yet.

    Where the last is damaged, it is the best, which is older; the epochs since then are done again.

    Raises:
        UserError: the best is damaged, whose weights can't be had again by going on, or both are.
    """
    best, last = folder.best_checkpoint, folder.last_checkpoint
    if not (best.is_file() or last.is_file()):
        return None
    kept = read_checkpoint(best)
    if not last.is_file():  # killed between the two
        return best, kept
    try:
        return last, read_checkpoint(last)
    except UserError:
        log.warning("%s is damaged; going on from %s, of epoch %d", last, best.name, int(kept["epoch"]) + 1)
        return best, kept


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint, whose checksums are looked at.

    Raises:
        UserError: it is gone, damaged, or no checkpoint of a training.
    """
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()
        content = {} if damaged else dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is gone and the run can't go on; restore it, or start again with --overwrite"
        ) from error
    except (RuntimeError, EOFError, BadZipFile, pickle.UnpicklingError, ValueError, TypeError, LookupError) as error:
        raise _damaged(path) from error
    if not all(name in content for name in _HELD):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged and the run can't go on from it; restore it, or start again with --overwrite")
