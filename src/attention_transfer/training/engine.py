"""Trains an objective into a run folder, by Lightning. One engine for all methods."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from attention_transfer.config.choices import Device, Devices, LoggerName, Strategy
from attention_transfer.config.recipe import Recipe, ResolvedRecipe
from attention_transfer.errors import UserError, raise_all
from attention_transfer.training.hardware import choose_hardware
from attention_transfer.training.job import Fitted, Job, run_job
from attention_transfer.training.loading import choose_workers
from attention_transfer.training.loggers import DEFAULT, logger_problems
from attention_transfer.training.memory import OutOfMemory, can_checkpoint, checkpointed_gradients
from attention_transfer.training.run_folder import RunFolder
from attention_transfer.training.samplers import Images

__all__ = ["Fitted", "fit", "fit_problems", "sharding_problems"]

log = logging.getLogger("attention_transfer")


def fit(
    objective: nn.Module,
    folder: RunFolder,
    recipe: ResolvedRecipe,
    *,
    train: Images,
    validation: Images,
    test: Images | None = None,
    classes: int | None = None,
    prepare: nn.Module | None = None,
    seed: int = 0,
    name: str = "training",
    device: Device = "auto",
    devices: Devices = None,
    nodes: int | None = None,
    strategy: Strategy = "ddp",
    loggers: Sequence[LoggerName] | None = None,
) -> Fitted:
    """Train, keep the best epoch by validation, and leave its weights in `objective`.

    The monitored value is the validation accuracy, or the validation loss where there are no classes. A run that was
    interrupted goes on from its last checkpoint and gives the numbers of an uninterrupted one. Where a device runs out
    of memory, training goes on from there with micro-batches of half the size; the batch of a step stays as it is.

    Args:
        objective: what is trained; see `Objective`.
        folder: where everything is written.
        recipe: optimisation settings, of which none is left open; `problems` found none.
        train: images and labels.
        validation: what the best epoch is chosen by.
        test: read once, with the kept weights.
        classes: how many there are; `None` for an objective without labels.
        prepare: what turns a batch of pixels into the network's input, on the device.
        seed: of the order, the augmentation and all else that is drawn.
        name: for the log and the progress bar.
        device: "auto" takes GPUs where there are any.
        devices: processes on each machine, one a device; "auto" takes every GPU, `None` what the launcher says, or one.
        nodes: machines; default what the launcher (torchrun, SLURM) says, or 1.
        strategy: of several devices: "ddp", each holds the whole student; "fsdp", each holds a share.
        loggers: where metrics go besides the run's files; default TensorBoard.

    Raises:
        UserError: a device, a package or a recipe's feature is not there; the last checkpoint is damaged; the loss is
            not finite; memory is too small for a single image.
        Interrupted: the user stopped the run.
    """
    hardware = choose_hardware(device, devices, nodes, strategy)
    chosen = tuple(DEFAULT if loggers is None else loggers)
    vit: nn.Module = getattr(objective, "vit")  # noqa: B009
    uncheckpointable = can_checkpoint(vit) if recipe.checkpoint_gradients else []
    uncut = sharding_problems(objective, strategy)
    raise_all([*hardware.problems(recipe), *logger_problems(chosen), *uncheckpointable, *uncut])
    workers, why = choose_workers(train, recipe.workers, hardware)
    loaded = f"other processes that load images: {workers}" if workers else "no other process loads images"
    log.info("%s: on %s; %s (%s)", name, hardware, loaded, why)
    job = Job(
        objective=objective,
        folder=folder,
        recipe=_aligned(recipe),
        train=train,
        validation=validation,
        test=test,
        classes=classes,
        prepare=prepare,
        seed=seed,
        name=name,
        hardware=hardware,
        workers=workers,
        loggers=chosen,
        evaluation_batch=max(recipe.batch_size, 256),
    )
    with checkpointed_gradients(vit, on=recipe.checkpoint_gradients), _compiled(objective, on=recipe.compile):
        return _within_memory(job)


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


def sharding_problems(objective: nn.Module, strategy: Strategy) -> list[str]:
    """Why an objective's weights can't be cut into shares, where they are to be; a sentence each."""
    needs_whole = getattr(objective, "needs_whole", None)
    return needs_whole() if strategy == "fsdp" and needs_whole is not None else []


def _within_memory(job: Job) -> Fitted:
    """Run a job, in smaller pieces each time that memory runs out."""
    start = {name: value.detach().cpu().clone() for name, value in job.objective.state_dict().items()}
    while True:
        try:
            return run_job(job)
        except OutOfMemory as error:
            job = _smaller(job, error)
        # Only here, after the error and all that hung on it are gone.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        job.objective.load_state_dict(start)


def _smaller(job: Job, error: OutOfMemory) -> Job:
    """The job with half the images in a forward pass.

    Raises:
        UserError: there is only one.
    """
    recipe, device = job.recipe, job.hardware.device
    size = job.evaluation_batch if error.evaluating else job.micro_batch
    if size == 1:
        raise UserError(
            f"one image is too much for the memory of this {device} ({error}); take a smaller model or image_size, "
            "recipe.checkpoint_gradients or recipe.precision bf16"
        )
    if job.hardware.processes > 1:  # the others wait for this one in the middle of a step
        raise UserError(
            f"this {device} ran out of memory ({error}); start again with recipe.accumulate {2 * recipe.accumulate}, "
            "which makes the same steps from smaller pieces"
        )
    if error.evaluating:
        log.warning("%s: out of memory (%s); evaluating %d images at once", job.name, error, -(-size // 2))
        return replace(job, evaluation_batch=-(-size // 2))
    job = replace(job, recipe=replace(recipe, accumulate=2 * recipe.accumulate))
    log.warning(
        "%s: out of memory (%s); going on with micro-batches of %d images instead of %d, in steps of %d as before",
        job.name,
        error,
        job.micro_batch,
        size,
        recipe.batch_size,
    )
    return job


def _aligned(recipe: ResolvedRecipe) -> ResolvedRecipe:
    """A recipe whose last epoch has a validation."""
    every = max(n for n in range(1, min(recipe.validate_every, recipe.epochs) + 1) if recipe.epochs % n == 0)
    if every != recipe.validate_every:
        log.debug("a validation in every %d epochs, not %d: so the last epoch has one", every, recipe.validate_every)
    return replace(recipe, validate_every=every)


@contextmanager
def _compiled(objective: nn.Module, *, on: bool) -> Iterator[None]:
    """Compile a module's forward in place, which leaves the names of its weights as they are."""
    if not on:
        yield
        return
    objective.compile()
    try:
        yield
    finally:
        objective._compiled_call_impl = None
