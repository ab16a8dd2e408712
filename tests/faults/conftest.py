"""Commands in this process, and a folder of small valid inputs for the tests that spoil them.

The tests of this folder are short by default. `ATTENTION_TRANSFER_MINUTES=10 pytest tests/faults` gives each long one
ten minutes, and goes on after a failure, to report all of them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from attention_transfer import cli

HANG = 60  # seconds: a command hangs that computes for longer, or that does not compute at all for so long


class Hang(BaseException):
    """A command did not end; no `except Exception` may take that for something else."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    text: str

    @property
    def problem(self) -> str | None:
        """What is wrong with the way it ended; `None` where it is one of the documented ways."""
        if self.code not in (0, 2):
            return f"exit code {self.code}"
        if "Traceback" in self.text:
            return "a traceback"
        return "no sentence" if self.code == 2 and "error:" not in self.text else None


def command(*words: str) -> Outcome:
    """Give a command in this process, as its entry point would."""
    log, before = logging.getLogger("attention_transfer"), sys.argv
    handlers, level = log.handlers[:], log.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as printed:
        sys.argv = ["attention-transfer", *words]
        _Watch()
        try:
            shown = mock.patch.object(cli, "_of_a_bug", _with_traceback)  # which else goes into a file
            with shown, redirect_stdout(printed), redirect_stderr(printed):
                code = _code()
        finally:
            signal.alarm(0)
            sys.argv, log.handlers, log.level = before, handlers, level
            for number, handler in signals.items():
                signal.signal(number, handler)
        printed.seek(0)
        return Outcome(code, printed.read())


def forked(words: Sequence[str], *, kill_after: float | None = None, disk: Any = None) -> Outcome:
    """Give a command in a process of its own, which has everything imported; -9 is the code of one that was killed.

    Args:
        words: the command.
        kill_after: seconds, after which it is killed where it has not ended.
        disk: a context in which the process runs.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as printed:
        if (child := os.fork()) == 0:
            code = 1
            try:
                with disk or nullcontext():
                    outcome = command(*words)
                code = outcome.code
                printed.write(outcome.text)
                printed.flush()
            finally:
                os._exit(code)
        began, status = time.monotonic(), 0
        while kill_after is not None and time.monotonic() < began + kill_after:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            time.sleep(0.002)
        else:
            if kill_after is not None:
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        printed.seek(0)
        return Outcome(os.waitstatus_to_exitcode(status), printed.read())


def results(folder: Path) -> dict[str, Any]:
    """Numbers and weights of whatever a command wrote, without times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "summary.json":
            found[name] = _without_times(json.loads(path.read_text()))
        elif path.name == "metrics.jsonl":
            found[name] = [_without_times(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.name == "best.ckpt":
            found[name] = {key: value.tolist() for key, value in torch.load(path)["state_dict"].items()}
        elif ("unfinished" in path.name or "replaced" in path.name) and (path.is_file() or any(path.iterdir())):
            found[name] = "left over"
    return found


def _without_times(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    timed = ("seconds", "command")
    kept = {name: value for name, value in content.items() if name not in timed and not name.startswith("time/")}
    return {name: _without_times(value) for name, value in kept.items()}


def _code() -> int:
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except (Exception, Hang):  # noqa: BLE001 - that is what is looked for
        traceback.print_exc()
        return 1


def _with_traceback(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


class _Watch:
    """Notices a hang, and is not misled by a machine that has little time for this process."""

    def __init__(self) -> None:
        self.began = self.last = time.process_time()
        signal.signal(signal.SIGALRM, self._look)
        signal.alarm(HANG)

    def _look(self, number: int, frame: FrameType | None) -> None:
        now = time.process_time()
        if now - self.last < 0.001 * HANG or now - self.began > HANG:
            raise Hang
        self.last = now
        signal.alarm(HANG)


@dataclass
class Sandbox:
    """A folder of valid inputs, which is the current folder and the home folder too, and commands that use them."""

    path: Path

    def train(self, out: str, *more: str) -> list[str]:
        """A training of two epochs on eight pictures."""
        return ["train", *self._given(), "--teacher=teacher", "--preset=distill", f"--out={out}", *_RECIPE, *more]

    def pretrain(self, out: str, *more: str) -> list[str]:
        """A masked autoencoder on the same."""
        return ["pretrain", "--model=teacher", *self._given(), f"--out={out}", *_RECIPE, *more]

    def compare(self, out: str) -> list[str]:
        """Two trainings of one epoch, and their page."""
        recipe = ["--epochs=1", "--recipe.batch_size=4", "--recipe.workers=0"]
        return [
            *("compare", "--presets=scratch,copy", "--seeds=0", "--teacher=teacher"),
            *(*self._given(), f"--out={out}", *recipe),
        ]

    def export(self, run: str, out: str) -> list[str]:
        """An export for timm."""
        return ["export", run, f"--out={out}"]

    def _given(self) -> list[str]:
        return ["--data=photos", "--device=cpu"]

    def files(self, *without: str) -> dict[str, bytes | None]:
        """What every file holds, but of those folders; `None` for what is no file."""
        return {
            str(path.relative_to(self.path)): path.read_bytes() if path.is_file() else None
            for path in sorted(self.path.rglob("*"))
            if path.relative_to(self.path).parts[0] not in without
        }

    def copy(self, target: Path) -> Sandbox:
        """The same inputs in another place."""
        shutil.copytree(self.path, target, symlinks=True)
        return Sandbox(target)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be there."""
        here, home = Path.cwd(), os.environ.get("HOME", "")
        os.chdir(self.path)
        os.environ["HOME"] = str(self.path)
        try:
            yield
        finally:
            os.chdir(here)
            os.environ["HOME"] = home


_RECIPE = ["--epochs=2", "--recipe.batch-size=4", "--recipe.workers=0", "--recipe.validate-every=1"]


@pytest.fixture(scope="session")
def command_line() -> Any:
    """`command`: its words give an `Outcome`."""
    return command


@pytest.fixture(scope="session")
def in_a_process() -> Any:
    """`forked`: its words give an `Outcome`."""
    torch.set_num_threads(1)  # threads do not live on in a forked process
    return forked


@pytest.fixture(scope="session")
def results_of() -> Any:
    """`results` of a folder."""
    return results


@pytest.fixture(scope="session")
def trained(inputs: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """The inputs with two finished runs, and an export of the second. Afterwards, everything is imported here."""
    torch.set_num_threads(1)
    copied = inputs.copy(tmp_path_factory.mktemp("trained") / "sandbox")
    with copied.entered():
        for words in (copied.train("run"), copied.train("other", "--seed=1"), copied.export("other", "exported")):
            assert command(*words).code == 0
    return copied


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, teacher: str) -> Sandbox:
    """Pictures in splits and classes, and a teacher for them."""
    root = tmp_path_factory.mktemp("inputs") / "sandbox"
    rng = np.random.default_rng(0)
    for split, count in {"train": 4, "val": 2, "test": 2}.items():
        for shade, name in enumerate(("cat", "dog")):
            folder = root / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(100 * shade, 100 * shade + 100, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    shutil.copytree(teacher, root / "teacher")
    return Sandbox(root)


@pytest.fixture
def sandbox(inputs: Sandbox, tmp_path: Path) -> Iterator[Sandbox]:
    """A copy of the inputs, in which the test is."""
    copied = inputs.copy(tmp_path / "sandbox")
    with copied.entered():
        yield copied
