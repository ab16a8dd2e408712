"""What can't run without a card: events, graphs, memory counters, the sanitizer; `stand_in.py` has them on the CPU."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Literal

import torch

from attention_transfer.errors import UserError
from attention_transfer.experiments.runners import OnGPU, Runner
from attention_transfer.experiments.steps import Bench

Call = Callable[[], object]
Job = tuple[Any, ...]
Device = Literal["cpu", "cuda"]


def find(*, rehearse: bool) -> Card:
    """The card to measure.

    Raises:
        UserError: there is none that serves.
    """
    if rehearse:
        from benchmarks.gpu.stand_in import StandIn

        return StandIn()
    if not torch.cuda.is_available():
        raise UserError("there is no CUDA device that PyTorch can use; `run.sh --rehearse` tries the kit on the CPU")
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"{torch.cuda.get_device_name()} has no bfloat16; the kit needs a card of Ampere or later")
    return Card()


def is_lost(error: BaseException) -> bool:
    """Whether an error leaves the process without a usable card: every later call would fail too."""
    text = str(error)
    return isinstance(error, RuntimeError) and "CUDA error" in text and "out of memory" not in text


class Card:
    """The CUDA device of this process."""

    device: Device = "cuda"
    processes: Literal["forkserver", "fork"] = "forkserver"
    rehearsed = False

    def facts(self) -> dict[str, Any]:
        """What a figure depends on."""
        properties = torch.cuda.get_device_properties(0)
        return {
            "card": properties.name,
            "driver": _driver(),
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
        }

    def events(self, *calls: Call) -> list[float]:
        """Milliseconds of each of several calls, one after the other, by events on the card."""
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
        torch.cuda.synchronize()
        marks[0].record()
        for call, mark in zip(calls, marks[1:], strict=True):
            call()
            mark.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]

    def graph(self, call: Call) -> Call:
        """The call as one graph, whose replay has no gaps between kernels; warmed up on a stream of its own."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def peak(self, call: Call) -> int:
        """Bytes that a call takes at most beyond what is allocated."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def free(self) -> int:
        """Bytes that are free."""
        return torch.cuda.mem_get_info()[0]

    def clear(self) -> None:
        """Give back what nothing refers to any more."""
        gc.collect()
        torch.cuda.empty_cache()

    @contextmanager
    def squeezed(self, leave: int, most_images: int) -> Iterator[None]:  # noqa: ARG002 - for the stand-in
        """Leave only so many bytes free."""
        self.clear()
        ballast = torch.empty(max(0, self.free() - leave), dtype=torch.uint8, device=self.device)
        yield
        del ballast

    def runner(self, method: str, setting: Bench) -> Runner:
        """A method of `bench`, ready to run in this process; whatever it fails at is a `UserError`."""
        try:
            return self._runner(method, setting)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if is_lost(error):
                raise
            raise UserError(f"it fails: {sentence(error)}") from error

    def _runner(self, method: str, setting: Bench) -> Runner:
        return OnGPU(method, setting)

    def apart(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
        """Run several jobs, each in a process of its own, as many at once as there are cores, 12 at most.

        A crash is then one job's, and kernels are compiled on several cores. Nothing may be timed in such a job.

        Args:
            jobs: each a function and its arguments, which a new process can import and unpickle.

        Yields:
            A job and what it returned, or the exception that ended it, as they come to their ends.
        """
        with ThreadPoolExecutor(min(12, os.cpu_count() or 1)) as threads:
            futures = {threads.submit(_alone, *job): job for job in jobs}
            for future in as_completed(futures):
                error = future.exception()
                yield futures[future], error if error is not None else future.result()

    def sanitized(self, module: str, arguments: Sequence[str]) -> str | None:
        """Run a module's `main` under compute-sanitizer's memory checker; what it found, or `None`.

        Raises:
            UserError: the tool is not there, or not for this card.
        """
        tool = shutil.which("compute-sanitizer")
        if tool is None:
            raise UserError("compute-sanitizer is not installed")
        command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line.strip("= ") for line in done.stdout.splitlines() if line.startswith("=========")]
        if "Device not supported" in done.stdout:
            raise UserError("compute-sanitizer does not support this device")
        return None if done.returncode == 0 else "; ".join([*lines[1:4], *done.stderr.splitlines()[-1:]])


def sentence(error: BaseException) -> str:
    """An error in one line."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]


def _alone(job: Callable[..., Any], *arguments: Any) -> Any:
    # A server that has imported everything, and has not touched the card, starts them: imports take half a minute where
    # a dozen processes have theirs at once.
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu.right", "benchmarks.gpu.steps"])
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(job, *arguments).result()


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None
