"""Trains an objective into a run folder, by Lightning. One engine for all methods."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from attention_transfer.errors import UserError
from attention_transfer.training.callbacks import (
    AveragedWeights,
    Interrupted,
    MetricsWriter,
    ShowProgress,
    StopOnRequest,
    WholeCheckpoints,
    read_metrics,
)
from attention_transfer.training.module import ObjectiveModule
from attention_transfer.training.progress import Display
from attention_transfer.training.recipe import Recipe
from attention_transfer.training.run_folder import RunFolder
from attention_transfer.viewing import Point, learning_curves, save

Images = Dataset[tuple[Tensor, ...]]

log = logging.getLogger("attention_transfer")


@dataclass(frozen=True)
class Fitted:
    """A finished training.

    Attributes:
        best_epoch: the epoch, from 1, whose weights were kept.
        validation: that epoch's validation metrics, by name.
        test: metrics on the test split, read once with the kept weights; empty where there is none.
        steps: optimiser steps.
        seconds: time in training, validation included, summed over resumptions.
    """

    best_epoch: int
    validation: dict[str, float]
    test: dict[str, float]
    steps: int
    seconds: float


class SeededSampler(DistributedSampler[Any]):
    """Makes all randomness of an epoch a function of the seed and the epoch: order, augmentation, masks, dropout.

    So a resumed run draws what the uninterrupted one would have drawn, with no generator states to save. It hangs on
    the sampler because Lightning announces every epoch to it, and makes the first epoch's iterator before any hook.
    """

    def __init__(self, images: Images, *, seed: int) -> None:
        super().__init__(images, num_replicas=1, rank=0, shuffle=True, seed=seed)
        # The loader draws the seeds of its workers from here. Drawn from torch's own generator they would depend on
        # when the iterator was made, which is another moment in the first epoch of a resumed run.
        self.generator = torch.Generator()

    def set_epoch(self, epoch: int) -> None:
        """Seed torch, numpy, python and the loader's workers for the epoch."""
        super().set_epoch(epoch)
        seed = self.seed * 1_000_003 + epoch
        self.generator.manual_seed(seed)
        L.seed_everything(seed, workers=True, verbose=False)


def fit(
    objective: nn.Module,
    folder: RunFolder,
    recipe: Recipe,
    *,
    train: Images,
    validation: Images,
    test: Images | None = None,
    classes: int | None = None,
    prepare: nn.Module | None = None,
    seed: int = 0,
    name: str = "training",
) -> Fitted:
    """Train, keep the best epoch by validation, and leave its weights in `objective`.

    The monitored value is the validation accuracy, or the validation loss where there are no classes. A run that was
    interrupted goes on from its last checkpoint and gives the numbers of an uninterrupted one.

    Raises:
        UserError: the last checkpoint is damaged.
        Interrupted: the user stopped the run.
    """
    recipe = _aligned(recipe)
    sampler = SeededSampler(train, seed=seed)
    loader = DataLoader(
        train, recipe.batch_size, sampler=sampler, num_workers=recipe.workers, generator=sampler.generator
    )
    steps = recipe.epochs * len(loader)
    monitor, mode = ("validation/accuracy", "max") if classes is not None else ("validation/loss", "min")
    module = ObjectiveModule(objective, recipe, steps=steps, classes=classes, prepare=prepare)
    metrics = MetricsWriter(folder)
    last = folder.last_checkpoint
    done = 0
    if last is not None:
        resumed = read_checkpoint(last)
        done = int(resumed["global_step"])
        sampler.set_epoch(int(resumed["epoch"]) + 1)
        log.info("%s: resumed after step %d of %d", name, done, steps)
    checkpoint = ModelCheckpoint(
        dirpath=folder.checkpoints,
        filename="best",
        monitor=monitor,
        mode=mode,
        save_last=True,
        every_n_epochs=recipe.validate_every,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    with Display.open() as display, display.bar(name, steps, done=done) as bar, _quiet():
        averaging: list[Callback] = [AveragedWeights(recipe.ema_decay)] if recipe.ema_decay is not None else []
        stop = StopOnRequest()
        callbacks = [*averaging, metrics, ShowProgress(bar, monitor), stop, checkpoint]
        with stop.listening():
            trainer = _trainer(recipe, callbacks)
            trainer.fit(module, loader, _in_order(validation, recipe), ckpt_path=last, weights_only=True)
            if stop.requested:  # during the last validation, after which there is no step to stop behind
                raise Interrupted
        best = read_checkpoint(Path(checkpoint.best_model_path))
        module.load_state_dict(best["state_dict"])
        tested = [] if test is None else _trainer(recipe, []).test(module, _in_order(test, recipe), verbose=False)
    best_epoch = int(best["epoch"]) + 1
    _draw_curve(folder, monitor, title=name)
    return Fitted(
        best_epoch=best_epoch,
        validation=_validation_at(metrics.path, best_epoch),
        test={key.removeprefix("test/"): float(value) for row in tested for key, value in row.items()},
        steps=steps,
        seconds=round(metrics.seconds, 2),
    )


def _aligned(recipe: Recipe) -> Recipe:
    """A recipe whose last epoch has a validation."""
    every = max(n for n in range(1, min(recipe.validate_every, recipe.epochs) + 1) if recipe.epochs % n == 0)
    if every != recipe.validate_every:
        log.info("validating every %d epochs instead of %d, so that the last is one", every, recipe.validate_every)
    return replace(recipe, validate_every=every)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint.

    Raises:
        UserError: it is truncated or no checkpoint.
    """
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError, BadZipFile, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged and the run can't go on from it; start again with --overwrite") from error


def _trainer(recipe: Recipe, callbacks: list[Callback]) -> L.Trainer:
    return L.Trainer(
        max_epochs=recipe.epochs,
        accelerator="auto",
        devices=1,
        gradient_clip_val=recipe.clip_grad,
        check_val_every_n_epoch=recipe.validate_every,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        logger=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _in_order(images: Images, recipe: Recipe) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(images, max(recipe.batch_size, 256), num_workers=recipe.workers)


def _draw_curve(folder: RunFolder, monitor: str, *, title: str) -> None:
    """The monitored value over the epochs, in `figures/curve.png`."""
    rows = [row for row in read_metrics(folder.path / "metrics.jsonl") if monitor in row]
    points = [(row["epoch"], Point(row[monitor], row[monitor], row[monitor])) for row in rows]
    label = monitor.replace("/", " ")
    figure = learning_curves({title: {label: points}}, ylabel=label, percent=monitor.endswith("accuracy"))
    save(figure, folder.figures / "curve.png")


def _validation_at(metrics: Path, epoch: int) -> dict[str, float]:
    row = next(row for row in read_metrics(metrics) if row["epoch"] == epoch)
    return {key.removeprefix("validation/"): value for key, value in row.items() if key.startswith("validation/")}


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's notices about devices and small logs, which say nothing about this training."""
    lightning_log = logging.getLogger("lightning.pytorch")
    level = lightning_log.level
    lightning_log.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*treespec.*")
        try:
            yield
        finally:
            lightning_log.setLevel(level)
