"""Checkpoints of a run: written whole or not at all, and read without running code from them."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, cast
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from attention_transfer.engine.optimiser import AveragedWeights
from attention_transfer.errors import UserError
from attention_transfer.objectives import Objective
from attention_transfer.writing import whole_file

log = logging.getLogger("attention_transfer")

# Sharded tensors are put together, so that a run can be continued with other devices and another strategy.
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class State(TypedDict):
    """What is saved of what is trained: tensors by the objective's names, put together if they are sharded.

    Attributes:
        state_dict: the weights that were validated.
        training_weights: the weights that are trained, if those validated are their average; else `None`.
        updates: of the average.
        optimizer: state of the optimiser.
    """

    state_dict: dict[str, Tensor]
    training_weights: dict[str, Tensor] | None
    updates: int
    optimizer: dict[str, Any]


class Checkpoint(State):
    """What a training needs to continue after an epoch that had a validation; tensors and plain values.

    Attributes:
        epoch: epochs that are done.
        step: optimiser steps that are done.
        scaler: state of the loss's scale; empty but for fp16.
        accumulate: micro-batches of a step, which the memory may have decided.
        seconds: of training, so far.
        rows: the metrics of each epoch.
    """

    epoch: int
    step: int
    scaler: dict[str, Any]
    accumulate: int
    seconds: float
    rows: list[dict[str, float]]


def best_checkpoint(folder: Path) -> Path:
    """The checkpoint with the best validation of the run in a folder."""
    return folder / "checkpoints" / "best.ckpt"


def last_checkpoint(folder: Path) -> Path:
    """The checkpoint of the last validation of the run in a folder."""
    return folder / "checkpoints" / "last.ckpt"


def epoch_checkpoint(folder: Path, epoch: int) -> Path:
    """The weights after a validated epoch, counted from 1, of a run that keeps those of every one."""
    return folder / "checkpoints" / f"epoch-{epoch}.ckpt"


def kept_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of the run in a folder, in no order; several may be of one epoch."""
    ends = (best_checkpoint(folder), last_checkpoint(folder))
    return [*(folder / "checkpoints").glob("epoch-*.ckpt"), *(path for path in ends if path.is_file())]


def state_of(objective: Objective, optimizer: torch.optim.Optimizer, average: AveragedWeights) -> State:
    """The weights, their average and the state of the optimiser, as a checkpoint has them; all processes must ask."""
    validated: dict[str, Tensor] | None = None
    if average.decay is not None:
        with average.applied():  # cloned, since the values are swapped back
            validated = {name: value.clone() for name, value in _weights(objective).items()}
    weights, optimized = _weights(objective), get_optimizer_state_dict(objective, optimizer, options=_WHOLE)
    return {
        "state_dict": weights if validated is None else validated,
        "training_weights": None if validated is None else weights,
        "updates": average.updates,
        "optimizer": optimized,
    }


def _weights(objective: Objective) -> dict[str, Tensor]:
    return cast(dict[str, Tensor], get_model_state_dict(objective, options=_WHOLE))


def restore(
    checkpoint: Checkpoint, objective: Objective, optimizer: torch.optim.Optimizer, average: AveragedWeights
) -> None:
    """Take up what `state_of` has given; the settings of the optimiser stay those that it was made with."""
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    set_model_state_dict(objective, dict(checkpoint["state_dict"]), options=_WHOLE)
    average.restore(checkpoint["updates"])
    weights = checkpoint["training_weights"] or checkpoint["state_dict"]
    optimizer.zero_grad()  # beside gradients that are left over, PyTorch gives an optimiser no state
    set_model_state_dict(objective, dict(weights), options=_WHOLE)
    set_optimizer_state_dict(objective, optimizer, checkpoint["optimizer"], options=replace(_WHOLE, strict=False))
    # A parameter without a gradient so far, as the head in pre-training, has no state; PyTorch makes one of a step.
    moved = checkpoint["optimizer"]["state"]
    kept = {parameter for name, parameter in objective.named_parameters(remove_duplicate=False) if name in moved}
    for parameter in set(optimizer.state) - kept:
        del optimizer.state[parameter]
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def load_weights(checkpoint: Checkpoint, objective: Objective) -> None:
    """Give an objective the weights that were validated."""
    set_model_state_dict(objective, dict(checkpoint["state_dict"]), options=_WHOLE)


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint whole or not at all."""
    with whole_file(path) as temporary, temporary.open("wb") as file:  # by a path, torch would not say why
        torch.save(dict(checkpoint), file)


def write_weights(checkpoint: Checkpoint, path: Path) -> None:
    """Write the validated weights of a checkpoint alone, in a form that `validated_weights` reads."""
    write_checkpoint({**checkpoint, "training_weights": None, "optimizer": {}, "rows": []}, path)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint that a run continues from; `None` if it has none yet.

    If the last is damaged, it is the best, which is older; the epochs since then are done again.

    Raises:
        UserError: the best is damaged, whose weights can't be had again by continuing, or both are.
    """
    best, last = best_checkpoint(folder), last_checkpoint(folder)
    if not (best.is_file() or last.is_file()):
        return None
    kept = read_checkpoint(best)
    if not last.is_file():  # killed between the two
        return kept
    try:
        return read_checkpoint(last)
    except UserError:
        log.warning("%s is damaged; going on from %s, of epoch %d", last, best.name, kept["epoch"])
        return kept


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a training checkpoint and verify its checksums.

    Raises:
        UserError: it is gone, damaged, of an earlier version, or no checkpoint of a training.
    """
    damaged = UserError(
        f"{path} is damaged and the run can't go on from it; restore it, or start again with --overwrite"
    )
    try:
        with ZipFile(path) as archive:
            whole = archive.testzip() is None
        content = dict(torch.load(path, map_location="cpu", weights_only=True)) if whole else {}
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is gone and the run can't go on; restore it, or start again with --overwrite"
        ) from error
    except (RuntimeError, EOFError, BadZipFile, pickle.UnpicklingError, ValueError, TypeError, LookupError) as error:
        raise damaged from error
    if "pytorch-lightning_version" in content:
        raise UserError(
            f"{path} was written by an earlier version, and the run can't go on from it; "
            "finish the run with that version, or start again with --overwrite"
        )
    if not Checkpoint.__required_keys__ <= content.keys():
        raise damaged
    return cast(Checkpoint, content)


def validated_weights(path: Path) -> tuple[int, dict[str, Tensor]]:
    """The epoch of a checkpoint and the weights that were validated then, which are read as they are used.

    Raises:
        UserError: it is damaged, of an earlier version, or no checkpoint of a training.
    """
    try:
        content = dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except (RuntimeError, EOFError, BadZipFile, pickle.UnpicklingError, ValueError, TypeError, LookupError) as error:
        raise UserError(f"{path} is damaged and can't be read") from error
    if not Checkpoint.__required_keys__ <= content.keys():
        raise UserError(f"{path} is no checkpoint of this version")
    checkpoint = cast(Checkpoint, content)
    return checkpoint["epoch"], checkpoint["state_dict"]
