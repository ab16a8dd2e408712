"""Trains an objective into a run folder. One engine for all methods."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from attention_transfer.config.choices import Device, Devices, LoggerName, Strategy
from attention_transfer.config.recipe import Recipe, ResolvedRecipe
from attention_transfer.engine.checkpoints import best_checkpoint, load_weights, read_checkpoint
from attention_transfer.engine.hardware import Hardware, choose_hardware
from attention_transfer.engine.loading import choose_workers
from attention_transfer.engine.loggers import DEFAULT, logger_problems
from attention_transfer.engine.loop import Loop
from attention_transfer.engine.memory import OutOfMemory, can_checkpoint, checkpointed_gradients
from attention_transfer.engine.training import Training, TrainingResult
from attention_transfer.errors import UserError, raise_all
from attention_transfer.objectives import Objective

log = logging.getLogger("attention_transfer")


def fit(training: Training) -> TrainingResult:
    """Train, keep the best epoch by validation, and leave its weights in the objective.

    The monitored value is the validation accuracy, or the validation loss if there are no classes. A run that was
    interrupted continues from its last checkpoint and gives the numbers of an uninterrupted one. If a device runs out
    of memory, training continues with micro-batches of half the size; the batch of a step stays as it is.

    Raises:
        UserError: a device, a package or a recipe's feature is not there; the last checkpoint is damaged; the loss is
            not finite; memory is too small for a single image.
        Interrupted: the user stopped the run.
    """
    objective, recipe = training.objective, training.recipe
    hardware = choose_hardware(training.device, training.devices, training.nodes, training.strategy)
    uncheckpointable = can_checkpoint(objective.vit) if recipe.checkpoint_gradients else []
    loggers = DEFAULT if training.loggers is None else training.loggers
    unsharded = sharding_problems(objective, training.strategy)
    raise_all([*hardware.problems(recipe), *logger_problems(loggers), *uncheckpointable, *unsharded])
    workers, why = choose_workers(training.train, recipe.workers, hardware)
    loaded = f"other processes that load images: {workers}" if workers else "no other process loads images"
    log.info("%s: on %s; %s (%s)", training.name, hardware, loaded, why)
    training = replace(training, recipe=_aligned(recipe), loggers=loggers)
    with checkpointed_gradients(objective.vit, on=recipe.checkpoint_gradients):
        if not hardware.sharded:
            return _within_memory(training, hardware, workers)
        # What is sharded can't be put together again: the objective that was given stays as it is, and on the CPU.
        result = _within_memory(replace(training, objective=copy.deepcopy(objective)), hardware, workers)
        load_weights(read_checkpoint(best_checkpoint(training.folder)), objective)
        return result


def fit_problems(
    recipe: Recipe,
    *,
    device: Device = "auto",
    devices: Devices = None,
    nodes: int | None = None,
    strategy: Strategy = "ddp",
    loggers: Sequence[LoggerName] | None = None,
) -> list[str]:
    """What `fit` would refuse of these, a sentence each, to be known before anything is written."""
    try:
        hardware = choose_hardware(device, devices, nodes, strategy).problems(recipe)
    except UserError as error:
        hardware = str(error).splitlines()
    return [*hardware, *logger_problems(DEFAULT if loggers is None else loggers)]


def sharding_problems(objective: Objective, strategy: Strategy) -> list[str]:
    """Why an objective's weights can't be sharded, if they are to be; a sentence each."""
    return objective.sharding_problems() if strategy == "fsdp" else []


def _aligned(recipe: ResolvedRecipe) -> ResolvedRecipe:
    """A recipe whose last epoch has a validation."""
    every = max(n for n in range(1, min(recipe.validate_every, recipe.epochs) + 1) if recipe.epochs % n == 0)
    if every != recipe.validate_every:
        log.debug("a validation in every %d epochs, not %d: so the last epoch has one", every, recipe.validate_every)
    return replace(recipe, validate_every=every)


def _within_memory(training: Training, hardware: Hardware, workers: int) -> TrainingResult:
    """Train, in smaller pieces each time that memory runs out."""
    evaluation_batch = max(training.recipe.batch_size, 256)
    start = {name: value.detach().cpu().clone() for name, value in training.objective.state_dict().items()}
    while True:
        loop = None  # of which nothing must hold on to memory
        try:
            loop = Loop(training, hardware, workers=workers, evaluation_batch=evaluation_batch)
            return loop.run()
        except OutOfMemory as error:
            assert loop is not None
            size = evaluation_batch if error.evaluating else loop.micro_batch
            _check_smaller(size, loop.recipe.accumulate, hardware, error)
            if error.evaluating:
                evaluation_batch = -(-size // 2)
                log.warning(
                    "%s: out of memory (%s); evaluating %d images at once", training.name, error, evaluation_batch
                )
            else:
                recipe = replace(training.recipe, accumulate=2 * loop.recipe.accumulate)
                training = replace(training, recipe=recipe)
                log.warning(
                    "%s: out of memory (%s); going on with micro-batches of %d images instead of %d, in steps of %d as "
                    "before",
                    training.name,
                    error,
                    -(-recipe.batch_size // recipe.accumulate),
                    size,
                    recipe.batch_size,
                )
        # Only here, after the error and all that hung on it are gone.
        del loop
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        training.objective.load_state_dict(start)


def _check_smaller(size: int, accumulate: int, hardware: Hardware, error: OutOfMemory) -> None:
    """Check that so many images at once can be halved.

    Raises:
        UserError: there is only one, or other processes wait for this one in the middle of a step.
    """
    device = hardware.device
    if size == 1:
        raise UserError(
            f"one image is too much for the memory of this {device} ({error}); take a smaller model or image_size, "
            "recipe.checkpoint_gradients or recipe.precision bf16"
        )
    if hardware.processes > 1:
        raise UserError(
            f"this {device} ran out of memory ({error}); start again with recipe.accumulate {2 * accumulate}, "
            "which makes the same steps from smaller pieces"
        )
