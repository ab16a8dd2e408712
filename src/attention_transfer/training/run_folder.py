"""A run's folder: what is in it, and who may write there. The contract is documented in docs/run-folder.md."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from attention_transfer.errors import UserError
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.training.hardware import this_process
from attention_transfer.writing import unfinished, write_whole

# Where a run is written, and by which devices it is computed, does not change what it is.
_NOT_COMPARED = ("out", "overwrite", "device", "devices", "nodes", "strategy", "loggers")


class RunFolder:
    """One run on disk: `config.yaml environment.json metrics.* log.txt checkpoints/ model/ figures/ summary.json`.

    Of several processes that train together, the first looks after the folder, and the others write nothing.
    """

    def __init__(self, path: Path, *, begun_anew: bool = False) -> None:
        self.path = path
        self._begun_anew = begun_anew
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.figures = path / "figures"

    @classmethod
    def open(cls, path: str | Path, config: Mapping[str, Any], *, overwrite: bool) -> RunFolder:
        """Make the folder, or take up the unfinished or finished run of the same configuration in it.

        Raises:
            UserError: the folder holds something else, or can't be written to. Nothing is written then.
        """
        if this_process() > 0:  # the first process may be about to remove what is there
            return cls(Path(path), begun_anew=overwrite)
        folder = cls.checked(path, config, overwrite=overwrite)
        if overwrite and folder.has("config.yaml"):
            shutil.rmtree(folder.path)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            if not folder.has("config.yaml"):
                folder.write_yaml("config.yaml", config)
            if not folder.has("environment.json"):
                folder.write_json("environment.json", environment())
        except OSError as error:
            raise UserError(f"{path} can't be written ({error.strerror}); choose another folder with --out") from error
        return folder

    @classmethod
    def checked(cls, path: str | Path, config: Mapping[str, Any], *, overwrite: bool) -> RunFolder:
        """What `open` would take, with nothing made or removed.

        Raises:
            UserError: as for `open`.
        """
        folder = cls(Path(path))
        if folder.path.is_file():
            raise UserError(f"{path} is a file; choose a folder for the run with --out")
        is_run = folder.has("config.yaml")
        begun = unfinished(folder.path / "config.yaml")  # of a run that was killed at once
        occupied = folder.path.is_dir() and any(entry != begun for entry in folder.path.iterdir())
        if occupied and not is_run:
            raise UserError(f"{path} is not empty and holds no run; choose another folder with --out")
        if is_run and not overwrite:
            folder._check_same(config)
            if folder.finished:  # nothing will be written
                return folder
        check_writable(folder.path)
        return folder

    @property
    def finished(self) -> bool:
        """Whether the run has its summary, which is written last."""
        return self.has("summary.json") and not self._begun_anew

    @property
    def best_checkpoint(self) -> Path:
        """The weights that are kept."""
        return self.checkpoints / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path | None:
        """Where an interrupted run goes on from."""
        path = self.checkpoints / "last.ckpt"
        return path if path.is_file() else None

    def has(self, name: str) -> bool:
        """Whether the run holds a file of this name."""
        return (self.path / name).is_file()

    def config(self) -> dict[str, Any]:
        """The resolved configuration of the run."""
        return read_yaml(self.path / "config.yaml")

    def summary(self) -> dict[str, Any]:
        """The run's results.

        Raises:
            UserError: the run is not finished.
        """
        if not self.finished:
            raise UserError(
                f"{self.path} holds no finished run (no summary.json); finish it by the command that began it"
            )
        return dict(json.loads((self.path / "summary.json").read_text(encoding="utf-8")))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all; the first process does."""
        if this_process() == 0:
            write_whole(self.path / name, json.dumps(content, indent=2) + "\n")

    def write_yaml(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a YAML file, whole or not at all; the first process does."""
        if this_process() == 0:
            write_whole(self.path / name, yaml.safe_dump(dict(content), sort_keys=False))

    def keep(self, name: str, text: str, what: str) -> None:
        """Write a file that must not change while the run is unfinished; the first process does.

        Raises:
            UserError: the run was begun with another content.
        """
        if this_process() > 0:
            return
        if not self.has(name):
            write_whole(self.path / name, text)
        elif (self.path / name).read_text(encoding="utf-8") != text:
            raise UserError(
                f"{self.path} was begun with other {what} ({name}), so the data set has changed since; restore it, "
                "choose another --out, or start anew with --overwrite"
            )

    def _check_same(self, config: Mapping[str, Any]) -> None:
        changed = differences(self.config(), config)
        if changed:
            raise UserError(
                f"{self.path} holds another run ({'; '.join(changed)}); "
                "choose another --out, or replace it with --overwrite"
            )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two configurations disagree on, by dotted names; where they are written to does not count."""
    flat_there, flat_here = _flat(there), _flat(here)
    return [
        f"{key} is {flat_there.get(key)!r} there and {flat_here.get(key)!r} here"
        for key in sorted({*flat_there, *flat_here} - {*_NOT_COMPARED})
        if not _same(key, flat_there.get(key), flat_here.get(key))
    ]


def _same(key: str, there: Any, here: Any) -> bool:
    """Whether two values make the same run; any number of workers but 0 loads the same images."""
    if key == "recipe.workers" and there and here:
        return True
    return bool(there == here)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        UserError: it is damaged.
    """
    return read_mapping(path)


def environment() -> dict[str, Any]:
    """What a result depends on besides its configuration."""
    packages = ("attention-transfer", "torch", "torchvision", "timm", "lightning", "numpy", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "command": sys.argv,
    }


def check_writable(path: Path, needed_mb: int = 50) -> None:
    """Refuse, before any work, a place that can't be written to or is full."""
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise UserError(f"{path} can't be written: {parent} is a file; choose another folder with --out")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(
            f"{path} can't be written: no permission in {parent}, or it is read-only; choose another folder with --out"
        )
    free_mb = shutil.disk_usage(parent).free // 2**20
    if free_mb < needed_mb:
        raise UserError(
            f"{parent} has {free_mb} MB left, and {needed_mb} are needed; free some or choose another --out"
        )
