"""What a stage writes: one JSON file, whole again after every row, so that a killed stage leaves the rows it had."""

from __future__ import annotations

import json
import math
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from attention_transfer.engine.memory import ran_out_of_memory
from attention_transfer.errors import UserError
from attention_transfer.writing import write_whole
from benchmarks.gpu.card import Card, is_lost, sentence

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]


class Report:
    """The results of one stage.

    A row has what was measured, or `left_out` with the reason why it could not be, or `failed` with an error that
    nobody expected; `at_s` says after how many seconds it came. `finished` says whether the stage came to its end, and
    `failed` what ended it otherwise.
    """

    def __init__(self, path: Path, stage: str, card: Card, seconds: float) -> None:
        self._path, self._card = path, card
        self._start, self._limit = time.monotonic(), seconds
        self.content: dict[str, Any] = {
            "stage": stage,
            "finished": False,
            "rehearsed": card.rehearsed,
            **card.facts(),
            "versions": _versions(),
            "commit": commit(),
            "date": date.today().isoformat(),
            "limit_s": seconds,
            "rows": [],
        }
        self._write()

    def note(self, **facts: Any) -> None:
        """Something that belongs to all rows."""
        self.content |= facts
        self._write()

    def add(self, *rows: Row) -> None:
        """Rows that are known."""
        at = round(time.monotonic() - self._start, 1)
        self.content["rows"] += [row | {"at_s": at} for row in rows]
        for row in rows:
            print("  " + "  ".join(f"{key}={_short(value)}" for key, value in row.items()), flush=True)
        self._write()

    def row(self, name: Row, compute: Callable[[], Row]) -> None:
        """A row of a name and what `compute` gives, or why it gives nothing; none begins when time is up."""
        if self.time_left() <= 0:
            self.add(name | {"left_out": "the stage's time was up"})
            return
        try:
            result = compute()
        except Exception as error:
            if is_lost(error):
                self.add(name | {"failed": sentence(error)})
                raise
            result = why_not(error)
        self.add(name | result)
        self._card.clear()

    def time_left(self) -> float:
        """Seconds until the stage's limit, less some to end in."""
        return self._start + 0.95 * self._limit - time.monotonic()

    def close(self, error: BaseException | None = None) -> None:
        """The stage has ended, by itself or by an error."""
        self.content |= {"finished": error is None, "seconds": round(time.monotonic() - self._start, 1)}
        if error is not None:
            self.content["failed"] = sentence(error)
        self._write()

    def _write(self) -> None:
        write_whole(self._path, json.dumps(_finite(self.content), indent=1, allow_nan=False) + "\n")


def why_not(error: BaseException) -> Row:
    """What a row says that has no result: left out for a reason that was foreseen, or failed."""
    if ran_out_of_memory(error):
        return {"left_out": "out of memory"}
    if type(error).__name__ == "InterpreterError" and isinstance(error.__cause__, TypeError):
        return {"left_out": f"Triton's interpreter doesn't run with this NumPy ({sentence(error.__cause__)})"}
    return {"left_out": str(error)} if isinstance(error, UserError) else {"failed": sentence(error)}


def commit() -> str:
    """Of the tree that is measured: git's, or what the file COMMIT in its root says."""
    git, file = shutil.which("git"), ROOT / "COMMIT"
    if git is not None and (ROOT / ".git").exists():
        command = [git, "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return file.read_text().strip() if file.is_file() else "unknown"


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    found["torch"] = torch.__version__  # with the build
    for name in ("attention-transfer", "triton", "timm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
