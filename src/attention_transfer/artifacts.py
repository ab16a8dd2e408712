"""The files in the folders that verbs write, and the marks by which such folders are recognised: the only such list.

`--overwrite` removes the files that are named here, from a folder of that kind, and nothing else.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from attention_transfer.errors import UserError
from attention_transfer.locking import LOCK
from attention_transfer.writing import make_folder, sync, write_whole

log = logging.getLogger("attention_transfer")

MODEL = ("config.json", "model*.safetensors", "model.safetensors.index.json", "preprocessor_config.json")
"""Files in the folder of a model."""

EXPORT = (*MODEL, "README.md", "export.json", "model.onnx", "model.onnx.data", "preprocessing.json")
"""Files in the folder of an exported model, which is recognised by its `export.json`."""

RUN = (
    "config.yaml",  # removed first and written first: without it, the other files are leftovers
    "summary.json",
    "environment.json",
    "labelled.txt",
    "overlap.txt",
    "repair.json",
    "metrics.jsonl",
    "metrics.csv",
    "log.txt",
    "loggers.json",
    *(f"checkpoints/{name}" for name in ("best.ckpt", "last.ckpt", "epoch-*.ckpt", ".*.unfinished")),
    *(f"figures/{name}" for name in ("attention.png", "curve.png", ".*.unfinished")),
    *(f"{folder}/{name}" for folder in ("model", "teacher") for name in (*MODEL, "README.md")),
    *(f"tensorboard/{name}" for name in ("events.out.tfevents.*", "hparams.yaml")),
    *(f"wandb/{name}" for name in ("run-*", "offline-run-*", "latest-run", "debug*.log")),
    *(f"mlflow/{name}" for name in ("mlflow.db*", "artifacts")),
    ".*.unfinished",
)
"""Files in the folder of a run, as patterns. It is recognised by its `run.json`."""

MARKER = "run.json"

CORRUPTED_MARKER = "corrupt.json"
"""File beside the folders that `corrupt` writes; it names them."""

MODEL_FILES = (MARKER, *RUN, *EXPORT)
"""Files in any folder that a verb takes as a model."""

FORMAT = 1
"""Format version of a run folder; a version of this package reads only those that it knows."""

_KIND = "attention-transfer run"
_REPLACED = ".attention-transfer.replaced"
_OWN = (LOCK, _REPLACED, f".{MARKER}.unfinished")


def is_run(folder: Path) -> bool:
    """Whether a run wrote this folder: by its marker, or by the record of its environment, as older runs have it.

    Raises:
        UserError: a later version wrote it.
    """
    marker = _json(folder / MARKER)
    if marker.get("kind") == _KIND:
        written = marker.get("format")
        if written != FORMAT:
            raise UserError(
                f"{folder} is a run of format {written}, and this version knows {FORMAT}; update the package"
            )
        return True
    packages = _json(folder / "environment.json").get("packages")
    return isinstance(packages, dict) and "attention-transfer" in packages


def is_export(folder: Path) -> bool:
    """Whether `export` wrote this folder."""
    return {"format", "difference", "random_images"} <= _json(folder / "export.json").keys()


def is_bench(folder: Path) -> bool:
    """Whether `bench` wrote the `bench.json` in this folder."""
    return {"costs", "repeats", "versions"} <= _json(folder / "bench.json").keys()


def corrupted_record(folder: Path) -> dict[str, Any]:
    """The record of the images that `corrupt` wrote to this folder; empty where it did not."""
    record = _json(folder / CORRUPTED_MARKER)
    return record if {"kinds", "severities", "folders"} <= record.keys() else {}


def is_occupied(folder: Path) -> bool:
    """Whether a folder holds anything but the leftovers of a command that was killed as it began."""
    return folder.is_dir() and any(entry.name not in _OWN for entry in folder.iterdir())


def mark_run(folder: Path) -> None:
    """Make the folder of a run if it is not there, and write its marker."""
    make_folder(folder)
    if _json(folder / MARKER).get("kind") != _KIND:
        write_whole(folder / MARKER, json.dumps({"kind": _KIND, "format": FORMAT}, indent=2) + "\n")


def replacing_problems(folder: Path) -> list[str]:
    """Why the content of a folder can't be replaced, a sentence each."""
    if folder.is_symlink():
        return [f"{folder} is a link to {folder.resolve()}; name that folder itself to replace what is in it"]
    real = folder.resolve()
    for place, name in ((Path.cwd(), "the current folder"), (Path.home(), "the home folder")):
        if real in (place.resolve(), *place.resolve().parents):
            return [f"{folder} is {name}, or holds it, and is not replaced; choose another folder with --out"]
    return []


def removal_problems(folder: Path) -> list[str]:
    """Why a run can't be removed from a folder, a sentence each."""
    if problems := replacing_problems(folder):
        return problems
    linked = sorted({name.partition("/")[0] for name in RUN if "/" in name and (folder / name).parent.is_symlink()})
    return [
        f"{folder / name} is a link to {(folder / name).resolve()}, where nothing is removed; remove the link first"
        for name in linked
    ]


def set_aside(folder: Path) -> None:
    """Move the files of a run into a hidden folder beside them, which `discard` removes; log what else there is.

    Each file moves in one step, `config.yaml` first, so that `was_cut_off` can tell where a killed process stopped.
    """
    if not was_cut_off(folder):
        discard(folder)
    for path in _run_files(folder):
        target = folder / _REPLACED / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
        if path.parent != folder and not any(path.parent.iterdir()):
            path.parent.rmdir()
    sync(folder)
    if others := sorted(entry.name for entry in folder.iterdir() if entry.name not in (*_OWN, MARKER)):
        log.info("%s: kept what the run did not write: %s", folder, ", ".join(others))


def was_cut_off(folder: Path) -> bool:
    """Whether a process was killed after it had set a run aside and before the next run had begun."""
    return (folder / _REPLACED / "config.yaml").is_file() and not (folder / "config.yaml").is_file()


def holds_results(folder: Path) -> bool:
    """Whether a run's folder holds more than the first files of a run."""
    return any(not path.name.startswith(".") for path in _run_files(folder))


def _run_files(folder: Path) -> list[Path]:
    """The files of a run that exist, in the order in which they are removed."""
    return [path for name in RUN for path in sorted(folder.glob(name))]


def discard(folder: Path) -> None:
    """Remove the files that were set aside."""
    aside = folder / _REPLACED
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none that can be read."""
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
