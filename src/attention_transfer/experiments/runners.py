"""Where `bench` runs a method's steps: on the CPU in a process of its own, on a GPU in this one."""

from __future__ import annotations

import gc
import json
import multiprocessing
import signal
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from torch.profiler import ProfilerActivity, profile

from attention_transfer.experiments.steps import Bench, TimedStep, step_of, teacher_of


class Runner(Protocol):
    """A method that is ready to run."""

    memory: int
    """Peak memory of making the models and of two steps in bytes, by PyTorch's allocator."""

    def seconds(self) -> float:
        """Run a step; return its duration."""

    def close(self) -> None:
        """Release the models."""


def runner(method: str, setting: Bench) -> Runner:
    """Prepare a method and run its first steps."""
    return _InProcess(method, setting) if setting.device == "cpu" else OnGPU(method, setting)


class OnGPU:
    """Runs in this process; `memory` is the allocator's peak on the GPU."""

    def __init__(self, method: str, setting: Bench) -> None:
        self._of_device = torch.cuda if setting.device == "cuda" else torch.mps
        before = self._allocated()
        if setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._step: TimedStep | None = step_of(method, teacher_of(setting), setting)
        self._step()
        self._step()
        self._of_device.synchronize()
        peak = torch.cuda.max_memory_allocated() if setting.device == "cuda" else self._allocated()
        self.memory = peak - before

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated() if self._of_device is torch.cuda else torch.mps.current_allocated_memory()

    def seconds(self) -> float:
        assert self._step is not None
        self._of_device.synchronize()
        start = time.perf_counter()
        self._step()
        self._of_device.synchronize()
        return time.perf_counter() - start

    def close(self) -> None:
        self._step = None
        gc.collect()  # modules that refer to each other hold memory until then
        self._of_device.empty_cache()


class _InProcess:
    """Runs in a process of its own, so that memory left by one method does not affect another."""

    def __init__(self, method: str, setting: Bench) -> None:
        self._process = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # so it is in the process that is started meanwhile
        try:
            prepared = self._process.submit(_prepare, method, setting, torch.get_num_threads())
        finally:
            signal.signal(signal.SIGINT, before)
        try:
            self.memory = prepared.result()
        except BaseException:
            self._process.shutdown(wait=False, cancel_futures=True)
            raise

    def seconds(self) -> float:
        return self._process.submit(_time).result()

    def close(self) -> None:
        self._process.shutdown()


_steps: list[TimedStep] = []  # of a process that runs one method


def _prepare(method: str, setting: Bench, threads: int) -> int:
    """Make the models and run two steps; return the peak of PyTorch's allocated memory in bytes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # from here on Ctrl-C ends it, without a traceback of its own
    torch.set_num_threads(threads)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step = step_of(method, teacher_of(setting), setting)
        step()
        step()
    _steps.append(step)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    peak = total = 0
    for _, change in changes:
        total += change
        peak = max(peak, total)
    return peak


def _time() -> float:
    start = time.perf_counter()
    _steps[0]()
    return time.perf_counter() - start
