"""Where metrics go besides the run's own files: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from attention_transfer.config.choices import LoggerName
from attention_transfer.errors import UserError, nearest
from attention_transfer.training.run_files import read_json, readable_metrics
from attention_transfer.writing import write_whole

DEFAULT: tuple[LoggerName, ...] = ("tensorboard",)
_PROJECT = "attention-transfer"
_RECORDS = "loggers.json"


def logger_problems(names: Sequence[str]) -> list[str]:
    """Loggers that are unknown, or whose package is missing, a sentence each."""
    found = []
    for name in names:
        if name not in get_args(LoggerName):
            found.append(f"there is no logger {name!r}; {nearest(name, get_args(LoggerName))}")
        elif find_spec(name) is None:
            found.append(f"logger {name} needs the package {name}, which is not installed; pip install {name}")
    return found


def make_loggers(names: Sequence[str], folder: Path, name: str, *, done: int = 0) -> list[Logger]:
    """Loggers by name, which write into a run's folder, or where the environment names a server.

    A resumed run goes on in the records that it began; by which names, `loggers.json` in its folder says.

    Args:
        names: without problems.
        folder: of the run.
        name: of the run.
        done: steps that a resumed run has behind it; TensorBoard drops what was logged after them.

    Raises:
        UserError: a folder can't be made, or a service can't be reached, or does not let the user in.
    """
    for chosen in names:
        if chosen != "mlflow" or "MLFLOW_TRACKING_URI" not in os.environ:
            _make_folder(folder / chosen, chosen)
    purge: dict[str, Any] = {"purge_step": done + 1} if done else {}
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(
            folder, name="", version="tensorboard", default_hp_metric=False, **purge
        ),
        "wandb": lambda: _open_wandb(folder, name),
        "mlflow": lambda: _open_mlflow(folder, name),
    }
    return [makers[chosen]() for chosen in names]


def log_row(loggers: Sequence[Logger], row: dict[str, Any]) -> None:
    """Send a row of metrics to every logger that does not have it: a resumed run does some epochs again."""
    step, values = int(row["step"]), {key: float(value) for key, value in row.items() if key != "step"}
    for logger in loggers:
        if isinstance(logger, _Record) and step <= logger.sent:
            continue
        logger.log_metrics(values, step=step)
        logger.save()  # a run that is killed goes on behind what it logged


@contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[None]:
    """End the records with the block: as a success, or as failed where an error or the user ends it."""
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        for logger in loggers:
            logger.finalize(status)


class _Record(Logger):
    """A record of which nothing can be taken back."""

    sent = 0  # the last step that is in it


class _Wandb(_Record, WandbLogger):
    """A record of Weights & Biases that ends with the training.

    Lightning's ends with the process, and until then takes the next training's metrics too.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._own = import_module("wandb").run is None  # else the user has one open, as sweeps have, and ends it

    def finalize(self, status: str) -> None:
        """End it."""
        super().finalize(status)
        if self._own and self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)


class _MLflow(_Record, MLFlowLogger):
    """A record of MLflow."""


def _open_wandb(folder: Path, name: str) -> Logger:
    known = _records(folder).get("wandb", uuid4().hex[:8])
    project = os.environ.get("WANDB_PROJECT", _PROJECT)
    logger = _Wandb(name=name, project=project, save_dir=folder, id=known, resume="allow")
    try:
        identity = logger.experiment.id
    except import_module("wandb.errors").Error as error:
        raise UserError(
            f"Weights & Biases can't be used ({error}); give `wandb login`, set WANDB_MODE=offline, or leave wandb out"
        ) from error
    return _kept(logger, folder, "wandb", str(identity))


def _open_mlflow(folder: Path, name: str) -> Logger:
    known = _records(folder).get("mlflow")
    own, server = (folder / "mlflow").absolute(), os.environ.get("MLFLOW_TRACKING_URI")
    try:
        logger = _MLflow(
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT),
            run_name=name,
            tracking_uri=server or f"sqlite:///{own}/mlflow.db",  # MLflow no longer writes plain files
            artifact_location=None if server else (own / "artifacts").as_uri(),
            run_id=known,
        )
        client = logger.experiment
        if known is not None:
            client.update_run(known, status="RUNNING")
    except import_module("mlflow.exceptions").MlflowException as error:
        place = "at MLFLOW_TRACKING_URI" if server else f"in {own}"
        raise UserError(
            f"MLflow {place} can't be used ({error}); name the place where the run's record is, leave mlflow out, or "
            f"remove {folder / _RECORDS} to begin another record"
        ) from error
    return _kept(logger, folder, "mlflow", str(logger.run_id))


def _make_folder(path: Path, logger: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder of logger {logger}, {path}, can't be made ({error.strerror}); move away what is in its place, "
            f"or leave {logger} out of --loggers"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"the folder of logger {logger}, {path}, can't be written to; permit it, or leave {logger} out")


def _records(folder: Path) -> dict[str, str]:
    """By what name each service knows the run."""
    path = folder / _RECORDS
    return read_json(path) if path.is_file() else {}


def _kept(logger: _Record, folder: Path, service: str, identity: str) -> Logger:
    """A logger whose record is remembered, and goes on behind what it has of the run."""
    records, rows = _records(folder), folder / "metrics.jsonl"
    if service not in records:
        write_whole(folder / _RECORDS, json.dumps({**records, service: identity}, indent=2) + "\n")
    elif sent := readable_metrics(rows):
        logger.sent = int(sent[-1]["step"])
    return logger
