"""Python programs in processes that find torch and its like loaded.

An interpreter of its own needs seconds to load them. The processes here are forked from one that has done so, and in
which nothing has run: no thread, no gradient, nothing of this package. What is said of a program by
`python FILE`, `python -c CODE` or `python -m MODULE` is said here without the first word.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from subprocess import CompletedProcess

# What takes long to load, of other packages. Triton is among what they load, which reads its environment then: where
# that matters, a program needs an interpreter of its own.
HEAVY = ("torch", "timm", "torch.utils.tensorboard", "sklearn.datasets", "matplotlib.pyplot", "optuna")


@dataclass(frozen=True)
class Program:
    """A program that has been started.

    Attributes:
        process: in which it runs.
        words: what it is.
        out: the file of what it prints.
        err: the file of what it says.
    """

    process: ForkServerProcess
    words: tuple[str, ...]
    out: Path
    err: Path

    def ended(self, timeout: float = 600) -> CompletedProcess[str]:
        """Wait for its end; it is killed where it does not come to one within so many seconds."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code = self.process.exitcode
        assert code is not None
        return CompletedProcess(self.words, code, self.out.read_text(), self.err.read_text())


class Python:
    """Starts programs; what they print is in files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(HEAVY))

    def start(self, *words: str, cwd: Path | None = None, env: Mapping[str, str] = os.environ) -> Program:
        """Start a program and do not wait for it."""
        number = len(list(self._folder.iterdir()))
        out, err = (self._folder / f"{number}.{name}" for name in ("out", "err"))
        for file in (out, err):
            file.touch()
        process = self.context.Process(target=_run, args=(words, cwd or Path.cwd(), dict(env), (out, err)))
        process.start()
        return Program(process, words, out, err)

    def __call__(
        self, *words: str, cwd: Path | None = None, env: Mapping[str, str] = os.environ, timeout: float = 600
    ) -> CompletedProcess[str]:
        """Run a program to its end."""
        return self.start(*words, cwd=cwd, env=env).ended(timeout)


def _run(words: tuple[str, ...], cwd: Path, env: Mapping[str, str], streams: tuple[Path, Path]) -> None:
    """What the interpreter does with its arguments and its environment."""
    for number, file in enumerate(streams, start=1):
        os.dup2(os.open(file, os.O_WRONLY), number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    multiprocessing.set_start_method(None, force=True)  # its own processes are not forked from a server of theirs
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    kind, *rest = words
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [*words]
        runpy.run_path(kind, run_name="__main__")
