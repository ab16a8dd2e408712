"""Where metrics go besides the run's own files: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from attention_transfer.errors import nearest

LoggerName = Literal["tensorboard", "wandb", "mlflow"]

DEFAULT: tuple[LoggerName, ...] = ("tensorboard",)


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
    """Loggers by name, which write into a run's folder.

    Args:
        names: without problems.
        folder: of the run.
        name: of the run.
        done: steps that a resumed run has behind it; TensorBoard drops what was logged after them.
    """
    purge: dict[str, Any] = {"purge_step": done + 1} if done else {}
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(
            folder, name="", version="tensorboard", default_hp_metric=False, **purge
        ),
        "wandb": lambda: WandbLogger(name=name, save_dir=folder, id=_identity(folder), resume="allow"),
        "mlflow": lambda: MLFlowLogger(
            experiment_name="attention-transfer", run_name=name, save_dir=str(folder / "mlflow")
        ),
    }
    return [makers[chosen]() for chosen in names]


def log_row(loggers: Sequence[Logger], row: dict[str, Any]) -> None:
    """Send a row of metrics to every logger."""
    for logger in loggers:
        logger.log_metrics({key: float(value) for key, value in row.items() if key != "step"}, step=int(row["step"]))
        logger.save()  # a run that is killed goes on behind what it logged


def _identity(folder: Path) -> str:
    """A resumed run goes on in the same record."""
    return "-".join(folder.absolute().parts[-3:]).replace("/", "-")
