"""Where metrics go besides the run's own files: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, get_args
from uuid import uuid4

import yaml

from attention_transfer.engine.metrics import last_step
from attention_transfer.errors import UserError, nearest
from attention_transfer.text_files import read_json
from attention_transfer.writing import write_whole

LoggerName = Literal["tensorboard", "wandb", "mlflow"]

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


class Logger(Protocol):
    """A record of a run somewhere else."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Add a row, so that it is kept if the process ends."""

    def close(self, *, failed: bool) -> None:
        """End the record."""


def make_loggers(
    names: Sequence[str], folder: Path, name: str, *, settings: Mapping[str, Any], done: int = 0
) -> list[Logger]:
    """Loggers by name, which write into a run's folder, or where the environment names a server.

    A resumed run continues the records that it began; `loggers.json` in its folder has their names.

    Args:
        names: without problems.
        folder: of the run.
        name: of the run.
        settings: of the run, which each record shows.
        done: steps that a resumed run has behind it; TensorBoard drops what was logged after them.

    Raises:
        UserError: a folder can't be made, or a service can't be reached, or does not let the user in.
    """
    for chosen in names:
        if chosen != "mlflow" or "MLFLOW_TRACKING_URI" not in os.environ:
            _make_folder(folder / chosen, chosen)
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: _TensorBoard(folder / "tensorboard", settings, done),
        "wandb": lambda: _Wandb(folder, name, settings),
        "mlflow": lambda: _MLflow(folder, name, settings),
    }
    return [makers[chosen]() for chosen in names]


def log_row(loggers: Sequence[Logger], row: Mapping[str, float]) -> None:
    """Send a row of metrics to every logger."""
    values = {key: float(value) for key, value in row.items() if key != "step"}
    for logger in loggers:
        logger.log(values, int(row["step"]))


@contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[None]:
    """End the records with the block: as a success, or as failed where an error or the user ends it."""
    failed = True
    try:
        yield
        failed = False
    finally:
        for logger in loggers:
            logger.close(failed=failed)


class _TensorBoard:
    """TensorBoard's event files, and the settings in `hparams.yaml` beside them."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        write_whole(folder / "hparams.yaml", yaml.safe_dump(dict(settings)))
        self._writer: Any = SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    def log(self, values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:  # noqa: ARG002
        self._writer.close()


class _Wandb:
    """A record of Weights & Biases that ends with the training, unless the user has opened it."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        wandb: Any = import_module("wandb")
        self._own = wandb.run is None  # else the user has one open, as sweeps have, and ends it
        try:
            self._run = wandb.run or wandb.init(
                name=name,
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                dir=str(folder),
                id=_records(folder).get("wandb", uuid4().hex[:8]),
                resume="allow",
            )
        except import_module("wandb.errors").Error as error:
            raise UserError(
                f"Weights & Biases can't be used ({error}); give `wandb login`, set WANDB_MODE=offline, or leave wandb "
                "out"
            ) from error
        if self._own:
            self._run.define_metric("trainer/global_step")
            self._run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        self._run.config.update(dict(settings), allow_val_change=True)
        self._sent = _remember(folder, "wandb", str(self._run.id))

    def log(self, values: dict[str, float], step: int) -> None:
        if step > self._sent:  # nothing can be taken back, and a resumed run does some epochs again
            self._run.log({**values, "trainer/global_step": step})

    def close(self, *, failed: bool) -> None:
        if self._own:
            self._run.finish(exit_code=int(failed))


class _MLflow:
    """A record of MLflow."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        known = _records(folder).get("mlflow")
        own, server = (folder / "mlflow").absolute(), os.environ.get("MLFLOW_TRACKING_URI")
        tracking = import_module("mlflow.tracking")
        self._entities = import_module("mlflow.entities")
        try:
            # MLflow no longer writes plain files.
            self._client: Any = tracking.MlflowClient(server or f"sqlite:///{own}/mlflow.db")
            if known is None:
                known = self._create(name, None if server else (own / "artifacts").as_uri())
                parameters = [self._entities.Param(key, str(value)) for key, value in settings.items()]
                self._client.log_batch(known, params=parameters)
            else:
                self._client.get_run(known)
                self._client.update_run(known, status="RUNNING")
        except import_module("mlflow.exceptions").MlflowException as error:
            place = "at MLFLOW_TRACKING_URI" if server else f"in {own}"
            raise UserError(
                f"MLflow {place} can't be used ({error}); name the place where the run's record is, leave mlflow out, "
                f"or remove {folder / _RECORDS} to begin another record"
            ) from error
        self._id = known
        self._sent = _remember(folder, "mlflow", known)

    def _create(self, name: str, artifacts: str | None) -> str:
        """A new record; its experiment is made if it is not there."""
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        there = self._client.get_experiment_by_name(experiment)
        identity = (
            self._client.create_experiment(name=experiment, artifact_location=artifacts)
            if there is None
            else there.experiment_id
        )
        tags = import_module("mlflow.tracking.context.registry").resolve_tags()
        return str(self._client.create_run(experiment_id=identity, run_name=name, tags=tags).info.run_id)

    def log(self, values: dict[str, float], step: int) -> None:
        if step > self._sent:  # nothing can be taken back, and a resumed run does some epochs again
            now = int(time.time() * 1000)
            metrics = [self._entities.Metric(key, value, now, step) for key, value in values.items()]
            self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


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


def _remember(folder: Path, service: str, identity: str) -> int:
    """Note by what name a service knows the run; the last step that its record has."""
    records = _records(folder)
    if service in records:
        return last_step(folder / "metrics.jsonl")
    write_whole(folder / _RECORDS, json.dumps({**records, service: identity}, indent=2) + "\n")
    return 0
