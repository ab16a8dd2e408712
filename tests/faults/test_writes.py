"""A disk that fails, and a process that is killed, at each of its writes in turn.

What changes the disk is counted: opening a file for writing, each write that reaches it, syncing, renaming, linking,
making and removing. One run is made for each number, in which that operation fails; then the same command is given
again, which must end as if nothing had been.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import safetensors.torch
from safetensors import SafetensorError

from attention_transfer import writing
from attention_transfer.locking import LOCK
from attention_transfer.training import run_folder

MINUTES = float(os.environ.get("ATTENTION_TRANSFER_MINUTES", "0"))
SEED = int(os.environ.get("ATTENTION_TRANSFER_SEED", "0"))
SHORT = 2  # writes that fail in each case

_OF_PATHS = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "link", "symlink", "truncate")
_OF_DESCRIPTORS = ("fsync", "write", "ftruncate", "sendfile")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Disk:
    """Counts the operations of this process that change something below a folder, and lets some of them fail.

    Args:
        root: the folder.
        at: the number of the first that fails; 0 for none.
        fault: the number of the system's error, or "killed".
        lasting: whether all that follow fail, too, as on a full disk.
    """

    def __init__(self, root: Path, at: int = 0, fault: int | str = 0, *, lasting: bool = False) -> None:
        self.root, self.at, self.fault, self.lasting = str(root), at, fault, lasting
        self.count = root.with_name("count")  # a file, to be read by the process that forked this one
        self.names: list[str] = []

    def step(self, name: str, path: Any = None) -> None:
        """An operation is about to be."""
        if path is not None and not self._inside(path):
            return
        self.names.append(name)
        number = len(self.names)
        if self.at and (number == self.at or (self.lasting and number > self.at)):
            self._fail(path)

    def _inside(self, path: Any) -> bool:
        return not isinstance(path, int) and str(Path(os.fsdecode(path)).absolute()).startswith(self.root)

    def _fail(self, path: Any) -> None:
        if self.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        assert isinstance(self.fault, int)
        if self.fault == errno.ENOSPC and self.names[-1] in ("unlink", "remove", "rmdir"):
            return  # needs no space
        raise OSError(self.fault, os.strerror(self.fault), path)

    def __enter__(self) -> None:
        self._stack = ExitStack()
        put = self._stack.enter_context
        for name in _OF_PATHS:
            put(mock.patch.object(os, name, self._counting(name, getattr(os, name), of_path=True)))
        for name in _OF_DESCRIPTORS:
            put(mock.patch.object(os, name, self._counting(name, getattr(os, name), of_path=False)))
        put(mock.patch.object(os, "open", self._os_open(os.open)))
        opened = self._open(io.open)
        put(mock.patch.object(builtins, "open", opened))
        put(mock.patch.object(io, "open", opened))
        save = safetensors.torch.serialize_file  # type: ignore[attr-defined]
        put(mock.patch.object(safetensors.torch, "serialize_file", self._serialize(save)))
        put(mock.patch.object(writing, "_exchanged", self._exchanged(writing._exchanged)))

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self.count.write_text(" ".join(self.names))

    def _counting(self, name: str, real: Callable[..., Any], *, of_path: bool) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            self.step(
                name, arguments[-1] if of_path and name in ("rename", "replace") else arguments[0] if of_path else None
            )
            return real(*arguments, **options)

        return operation

    def _os_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def operation(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            if flags & _WRITING:
                self.step("open", path)
            return real(path, flags, *arguments, **options)

        return operation

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(file: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+") or isinstance(file, int) or not self._inside(file):
                return real(file, mode, buffering, *arguments, **options)
            self.step("open", file)
            raw = _File(self, file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *arguments, **options)

        return operation

    def _serialize(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(tensors: Any, path: Any, *arguments: Any, **options: Any) -> Any:
            """Of Rust, which opens and writes by itself."""
            try:
                self.step("save", path)
            except OSError as error:
                Path(path).write_bytes(b"half")
                raise SafetensorError(f"I/O error: {error.strerror} (os error {error.errno})") from error
            return real(tensors, path, *arguments, **options)

        return operation

    def _exchanged(self, real: Callable[..., bool]) -> Callable[..., bool]:
        def operation(one: Path, other: Path) -> bool:
            try:
                self.step("exchange", one)
            except OSError:
                return False
            return real(one, other)

        return operation


class _File(io.FileIO):
    """A file of which half is written before a write fails."""

    def __init__(self, disk: Disk, path: Any, mode: str) -> None:
        super().__init__(path, mode)
        self._disk = disk

    def write(self, data: Any, /) -> int:
        try:
            self._disk.step("write", self.name)
        except OSError:
            super().write(memoryview(data)[: memoryview(data).nbytes // 2])
            raise
        return super().write(data)


CASES: dict[str, Callable[[Any], list[str]]] = {
    "train": lambda sandbox: sandbox.train("out"),
    "train, replacing a run": lambda sandbox: sandbox.train("other", "--overwrite"),
    "pretrain": lambda sandbox: sandbox.pretrain("out"),
    "compare": lambda sandbox: sandbox.compare("out"),
    "export": lambda sandbox: sandbox.export("run", "out"),
    "export, replacing one": lambda sandbox: [*sandbox.export("run", "exported"), "--overwrite"],
}
FAULTS: dict[str, tuple[int | str, bool]] = {
    "full once": (errno.ENOSPC, False),
    "broken once": (errno.EIO, False),
    "full from then on": (errno.ENOSPC, True),
    "read-only from then on": (errno.EROFS, True),
    "killed": ("killed", False),
}


@contextmanager
def copied(trained: Any, path: Path) -> Iterator[Any]:
    """Inputs and runs that may be spoilt."""
    with trained.copy(path).entered():
        yield type(trained)(path)


@pytest.mark.parametrize("case", CASES if MINUTES else ["train", "export, replacing one"])
def test_a_command_whose_write_fails_or_kills_it_ends_as_if_undisturbed_when_given_again(
    case: str, trained: Any, in_a_process: Any, results_of: Any, tmp_path: Path
) -> None:
    words = CASES[case](trained)
    out = next(word.partition("=")[2] for word in words if word.startswith("--out="))
    root = tmp_path / "sandbox"
    with copied(trained, root) as sandbox:
        disk = Disk(root)
        before = results_of(root / out)
        assert in_a_process(words, disk=disk).code == 0
        right, operations = results_of(root / out), disk.count.read_text().split()
        assert right and "left over" not in right.values()
        inputs = sandbox.files(out)
    rng, kinds, found, done, until = random.Random(f"{case} {SEED}"), [*FAULTS], [], 0, time.monotonic() + 60 * MINUTES
    tries = []
    for turn in range(len(kinds)):  # in the first, each operation fails in one way; in the last, it has in all
        once = [(kinds[(at + turn) % len(kinds)], at) for at in range(1, len(operations) + 1)]
        tries += rng.sample(once, len(once))
    for done, (fault, at) in enumerate(tries if MINUTES else tries[:SHORT], start=1):
        if MINUTES and time.monotonic() > until:
            break
        what = f"{case}: operation {at} of {len(operations)} ({operations[at - 1]}) {fault}"
        path = tmp_path / f"{done}" / "sandbox"
        with copied(trained, path) as sandbox:
            number, lasting = FAULTS[fault]
            outcome = in_a_process(words, disk=Disk(path, at, number, lasting=lasting))
            if (fault == "killed" and outcome.code != -9) or (fault != "killed" and outcome.problem):
                found.append(f"{what}: {outcome}")
            if outcome.code == 0 and results_of(path / out) != right:
                found.append(f"{what}: exit code 0 and other results: {outcome.text}")
            if case == "export, replacing one" and results_of(path / out).get("model.safetensors") not in (
                before["model.safetensors"],
                right["model.safetensors"],
            ):
                found.append(f"{what}: neither the old nor the new export is there")
            again = in_a_process(words)
            stands = case == "export" and again.code == 2 and "exists" in again.text  # the first has put it in place
            if (again.code != 0 and not stands) or results_of(path / out) != right:
                found.append(f"{what}, then again: {again}, {_unlike(results_of(path / out), right)}")
            hidden = path / f".{out}.unfinished"  # without files, it may stay where its removal failed
            left = [file for file in hidden.rglob("*") if file.is_file() and file.name != LOCK]
            if sandbox.files(out, hidden.name) != inputs or left:
                found.append(f"{what}: inputs are changed")
        _say(found)
        _remove(path)
    print(
        f"{case}: {done} of {len(tries)} tries ({len(operations)} operations by {len(FAULTS)}), {len(found)} problems"
    )
    assert not found, "\n\n".join(found[:20])


def test_a_file_that_is_not_written_whole_is_found(
    trained: Any, in_a_process: Any, results_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness itself: with a plain write in the place of a whole one, a disk that fails leaves half a summary."""
    monkeypatch.setattr(run_folder, "write_whole", lambda path, text: path.write_text(text))
    words = trained.train("out")
    with copied(trained, tmp_path / "whole" / "sandbox") as sandbox:
        disk = Disk(sandbox.path)
        assert in_a_process(words, disk=disk).code == 0
        right, operations = results_of(Path("out")), disk.count.read_text().split()
    last_writes = [at for at, name in enumerate(operations, start=1) if name == "write"][-6:]

    def notices(at: int) -> bool:
        with copied(trained, tmp_path / f"{at}" / "sandbox") as sandbox:
            in_a_process(words, disk=Disk(sandbox.path, at, errno.EIO, lasting=True))
            return bool(in_a_process(words).code != 0 or results_of(Path("out")) != right)

    assert any(notices(at) for at in reversed(last_writes))  # one of which is the summary's


def _say(found: list[str], said: set[str] = set()) -> None:  # noqa: B006 - to say each once
    for problem in found:
        if problem not in said:
            said.add(problem)
            print(problem, flush=True)


def _unlike(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


def _remove(path: Path) -> None:
    for part in sorted(path.rglob("*"), reverse=True):
        part.rmdir() if part.is_dir() and not part.is_symlink() else part.unlink()
