"""Workers: each takes one run of a study after the other, in this process or in several."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

from attention_transfer.errors import Interrupted, UserError, raise_all
from attention_transfer.experiments.studies import Study
from attention_transfer.locking import Busy
from attention_transfer.writing import make_folder

log = logging.getLogger("attention_transfer")

POLL = 0.5
"""Seconds between two looks at what others do."""

WORKERS = "workers"
"""Folder of the workers' logs, inside a study's folder."""

_STOPPED = 130
_FRUITLESS = 4  # workers that may die for each that there is, without a run that finishes meanwhile

Computed = tuple[float, Mapping[str, Any]]
"""The value of a run, and what is recorded of it."""


def work(
    study: Study,
    names: Sequence[str],
    compute: Callable[[str], Computed],
    *,
    look: Callable[[], object] = lambda: None,
    raises: bool = True,
) -> None:
    """Compute what waits, until every run has ended, here or elsewhere.

    A run that is wrong in itself, as one whose loss is no number, fails alone: the others go on.

    Args:
        study: whose runs they are.
        names: of the runs, the most urgent first.
        compute: computes one, or resumes it.
        look: is called whenever something may have changed.
        raises: let an error that nobody expects end the work; else it is only recorded and logged.
    """
    later: dict[str, float] = {}
    while True:
        entry = study.claim([name for name in names if later.get(name, 0.0) <= time.monotonic()])
        if entry is None:
            known = study.entries()
            if all(known[name].ended for name in names):
                return
            look()
            time.sleep(POLL)
            continue
        look()
        with study.alive(entry):
            try:
                study.finish(entry, *compute(entry.name))
            except Busy as error:  # another run needs the same fine-tuned teacher
                log.debug("%s: waits (%s)", entry.name, error)
                study.release(entry)
                later[entry.name] = time.monotonic() + POLL
                continue
            except UserError as error:
                log.warning("%s failed: %s", entry.name, error)
                study.fail(entry, str(error))
            except (OSError, Interrupted):
                study.release(entry)
                raise
            except Exception as error:
                study.fail(entry, f"{type(error).__name__}: {error}")
                if raises:
                    raise
                log.exception("%s failed", entry.name)
            except BaseException:
                study.release(entry)
                raise
        look()


def in_processes(
    count: int,
    target: Callable[..., None],
    arguments: tuple[object, ...],
    folder: Path,
    ended: Callable[[], int | None],
) -> None:
    """Run a function in several processes; one that dies is replaced.

    Args:
        count: how many.
        target: a function of a module; it returns when nothing is left to do.
        arguments: of the function, which can be pickled.
        folder: what the processes say is in its `workers/`.
        ended: is called every now and then; how many runs have ended, or `None` once all have.

    Raises:
        UserError: they die again and again, and no run finishes meanwhile.
    """
    threads = max(1, torch.get_num_threads() // count)
    log.info("%d workers with %s each", count, "1 thread" if threads == 1 else f"{threads} threads")
    make_folder(folder / WORKERS)
    processes = [_started(target, arguments, folder / WORKERS / f"{n + 1}.log", threads) for n in range(count)]
    known, dead = 0, 0
    try:
        while (done := ended()) is not None:
            if done > known:
                known, dead = done, 0
            wait([process.sentinel for process in processes if process.exitcode is None], timeout=POLL)
            for number, process in enumerate(processes):
                if process.exitcode:
                    dead += 1
                    file = folder / WORKERS / f"{number + 1}.log"
                    if dead > _FRUITLESS * count:
                        raise_all(
                            [f"workers end again and again, the last one with code {process.exitcode}; see {file}"]
                        )
                    log.warning("worker %d ended with code %d; another takes its place", number + 1, process.exitcode)
                    processes[number] = _started(target, arguments, file, threads)
            if all(process.exitcode == 0 for process in processes):
                time.sleep(POLL)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _started(target: Callable[..., None], arguments: tuple[object, ...], file: Path, threads: int) -> SpawnProcess:
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None  # so it is in the process that is started
    try:
        process = multiprocessing.get_context("spawn").Process(target=_worker, args=(target, arguments, file, threads))
        process.start()
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
    return process


def _worker(target: Callable[..., None], arguments: tuple[object, ...], file: Path, threads: int) -> None:
    """What a process does: it stops when it is told to, or when the process that started it is gone."""
    signal.signal(signal.SIGTERM, _stop)
    # What loads images starts as it does elsewhere, and not from nothing like this process, whose method it inherits.
    multiprocessing.set_start_method(None, force=True)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, name="watches the parent", daemon=True).start()
    with file.open("a", encoding="utf-8") as stream, redirect_stderr(stream), redirect_stdout(stream):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            target(*arguments)
        except (KeyboardInterrupt, Interrupted):
            sys.exit(_STOPPED)


def _stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
