"""A run's folder: its files, and which command may write them. docs/run-folder.md documents the contract."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from attention_transfer.artifacts import (
    MARKER,
    discard,
    holds_results,
    is_occupied,
    is_run,
    mark_run,
    removal_problems,
    set_aside,
    was_cut_off,
)
from attention_transfer.config.base import rule_as_data
from attention_transfer.config.choices import AUTO
from attention_transfer.config.recipe import ResolvedRecipe
from attention_transfer.data import DATA
from attention_transfer.engine.launchers import this_process
from attention_transfer.errors import UserError, raise_all
from attention_transfer.locking import LOCK, locked
from attention_transfer.places import check_writable, expanded, folder_problems
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.training.run_files import PretrainedConfig, TrainedConfig, read_run_config, read_summary
from attention_transfer.transfer import FeatureKD, LossRule
from attention_transfer.transfer.rule_data import read_rules
from attention_transfer.writing import write_whole

# Settings that say where a run is written or on which devices it is computed: they do not change its results.
_NOT_COMPARED = ("out", "overwrite", "device", "devices", "nodes", "strategy", "loggers", "recipe.keep_epochs")


class RunFolder:
    """One run on disk: `config.yaml environment.json metrics.* log.txt checkpoints/ model/ figures/ summary.json`.

    Of several processes that train together, only the first writes to the folder.
    """

    def __init__(self, path: Path, *, begun_anew: bool = False) -> None:
        self.path = path
        self._begun_anew = begun_anew
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.figures = path / "figures"

    @classmethod
    @contextmanager
    def open(
        cls, path: str | Path, config: Mapping[str, Any], *, overwrite: bool, defaults: Mapping[str, Any] | None = None
    ) -> Iterator[RunFolder]:
        """Make the folder, or open it with the finished or unfinished run of the same configuration that it holds.

        Inside the block no other command writes there.

        Args:
            path: the folder.
            config: every setting of the run.
            overwrite: replace the files of another run there, and only these.
            defaults: values of settings that runs of earlier versions lack.

        Raises:
            UserError: the folder holds something else or an input of the run, another command is writing it, or it
                can't be written to. Nothing is written then.
        """
        if this_process() > 0:  # the first process may be about to remove what is there
            yield cls(expanded(path), begun_anew=overwrite)
            return
        folder = cls.checked(path, config, overwrite=overwrite, defaults=defaults)
        with ExitStack() as held:
            if overwrite or not folder.finished:
                try:
                    held.enter_context(locked(folder.path / LOCK, folder.path))
                    # Once more, now that no other command can write there.
                    cls.checked(path, config, overwrite=overwrite, defaults=defaults)
                    folder._begin(config, overwrite=overwrite)
                except OSError as error:
                    raise UserError(
                        f"{path} can't be written ({error.strerror}); choose another folder with --out"
                    ) from error
            yield folder

    @classmethod
    def checked(
        cls, path: str | Path, config: Mapping[str, Any], *, overwrite: bool, defaults: Mapping[str, Any] | None = None
    ) -> RunFolder:
        """Check that `open` would take the folder; nothing is made or removed.

        Raises:
            UserError: as for `open`.
        """
        folder = cls(expanded(path))
        if folder.path.is_file():
            raise UserError(f"{path} is a file; choose a folder for the run with --out")
        raise_all(_input_problems(folder.path, config))
        known = is_run(folder.path)
        if not known and is_occupied(folder.path):
            raise UserError(f"{path} is not empty and holds no run; choose another folder with --out")
        if known and overwrite:
            raise_all(removal_problems(folder.path))
        elif folder.has("config.yaml"):
            folder._check_same(config, defaults or {})
            if folder.finished:  # nothing will be written
                return folder
        elif holds_results(folder.path) and not was_cut_off(folder.path):
            raise UserError(
                f"{path} holds a run without its config.yaml; restore that, choose another --out, or replace the run "
                "with --overwrite"
            )
        check_writable(folder.path)
        return folder

    def _begin(self, config: Mapping[str, Any], *, overwrite: bool) -> None:
        """Begin the run in the folder, which keeps no file of another run."""
        if self.finished and not overwrite:  # by a command that has just ended
            return
        mark_run(self.path)
        if overwrite or was_cut_off(self.path):
            set_aside(self.path)
        if not self.has("config.yaml"):
            self.write_yaml("config.yaml", config)
        if not self.has("environment.json"):
            self.write_json("environment.json", environment())
        discard(self.path)

    @property
    def finished(self) -> bool:
        """Whether the run has its `summary.json`, which is written last."""
        return self.has("summary.json") and not self._begun_anew

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint with the weights that are kept."""
        return self.checkpoints / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint that an interrupted run continues from."""
        return self.checkpoints / "last.ckpt"

    def has(self, name: str) -> bool:
        """Whether the run holds a file of this name."""
        return (self.path / name).is_file()

    def config(self) -> TrainedConfig | PretrainedConfig:
        """The resolved configuration of the run.

        Raises:
            UserError: it is damaged.
        """
        return read_run_config(self.path / "config.yaml")

    def trained_config(self) -> TrainedConfig:
        """The same of a run of `train`.

        Raises:
            UserError: it is damaged, or the run is one of `pretrain`.
        """
        config = self.config()
        if isinstance(config, TrainedConfig):
            return config
        raise UserError(f"{self.path} holds a pre-trained teacher, not a classifier; name a run of `train`")

    def summary(self) -> dict[str, Any]:
        """The run's results.

        Raises:
            UserError: the run is not finished, or its summary is damaged.
        """
        if not self.finished:
            raise UserError(
                f"{self.path} holds no finished run (no summary.json); finish it by the command that began it"
            )
        return read_summary(self.path / "summary.json")

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all; the first process does."""
        if this_process() == 0:
            write_whole(self.path / name, json.dumps(content, indent=2) + "\n")

    def write_yaml(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a YAML file, whole or not at all; the first process does."""
        if this_process() == 0:
            write_whole(self.path / name, yaml.safe_dump(dict(content), sort_keys=False))

    def keep(self, name: str, text: str, what: str) -> None:
        """Write a file whose content must stay the same while the run is unfinished; the first process does.

        Raises:
            UserError: the run was begun with another content.
        """
        if this_process() > 0:
            return
        if not self.has(name):
            write_whole(self.path / name, text)
        elif (self.path / name).read_bytes() != text.encode():
            raise UserError(
                f"{self.path} was begun with other {what} ({name}), so the data set has changed since, or that file "
                "has; restore it, choose another --out, or start anew with --overwrite"
            )

    def _check_same(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        there = read_mapping(self.path / "config.yaml")
        if isinstance(there.get("rules"), list):
            rules = read_rules(there["rules"])
            summed = [type(rule).__name__ for rule in rules if isinstance(rule, LossRule | FeatureKD)]
            if summed and not self.has(MARKER) and not self.finished:
                raise UserError(
                    f"an earlier version began the run in {self.path}, in which the weight of {summed[0]} was of a sum "
                    "over layers, and not of their mean; finish it with that version, or start anew with --overwrite"
                )
            there["rules"] = [rule_as_data(rule) for rule in rules]  # with the settings that they have had since
        changed = differences(there, config, defaults)
        if changed:
            raise UserError(
                f"{self.path} holds another run ({'; '.join(changed)}); "
                "choose another --out, or replace it with --overwrite"
            )


def _input_problems(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Why a run that reads these inputs can't write the folder."""
    data = [] if config.get("data") in DATA else [config.get("data")]
    init = None if config.get("init") in ("random", "teacher") else config.get("init")
    return folder_problems(
        folder, data=data, models=[init, *map(config.get, ("teacher", "student", "model", "pretrained"))]
    )


def differences(there: Mapping[str, Any], here: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """List the settings in which two configurations differ, by dotted names, except for where and on what they run.

    Args:
        there: of a run, perhaps of an earlier version; settings that it lacks had their defaults.
        here: what is asked for now.
        defaults: of settings other than the recipe's.
    """
    known = flat({**defaults, "recipe": asdict(ResolvedRecipe())} if here.get("recipe") else defaults)
    flat_there, flat_here = {**known, **flat(there)}, flat(here)
    return [
        f"{key} is {flat_there.get(key)!r} there and {flat_here.get(key)!r} here"
        for key in sorted({*flat(there), *flat_here} - {*_NOT_COMPARED})
        if not _same(key, flat_there.get(key), flat_here.get(key))
    ]


def _same(key: str, there: Any, here: Any) -> bool:
    """Whether two values make the same run; all numbers of workers but 0 load the same images."""
    if key == "recipe.workers" and there and here:
        return True
    if key.startswith("recipe.") and AUTO in (there, here):  # not asked for, or left open by an earlier version
        return True
    return bool(there == here)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a configuration by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def environment() -> dict[str, Any]:
    """What a result depends on besides the configuration."""
    packages = ("attention-transfer", "torch", "torchvision", "timm", "numpy", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "command": sys.argv,
    }
