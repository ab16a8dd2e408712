"""The verb `bench`: what each method costs a step, in time and memory, against the floor."""

from __future__ import annotations

import gc
import json
import platform
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import timm
import torch
from rich.table import Table

from attention_transfer.artifacts import is_bench
from attention_transfer.config.base import parts_of
from attention_transfer.config.bench import MeasureCost
from attention_transfer.engine.memory import ran_out_of_memory
from attention_transfer.errors import UserError, raise_all
from attention_transfer.experiments.runners import Runner, runner
from attention_transfer.experiments.steps import METHODS, Bench, check_methods, teacher_of
from attention_transfer.places import check_writable, expanded, folder_problems
from attention_transfer.training import Display, choose_hardware
from attention_transfer.ui import Console
from attention_transfer.viewing import cost_chart, save
from attention_transfer.vit import describe
from attention_transfer.writing import write_whole


@dataclass(frozen=True)
class Cost:
    """What one method costs at one image size.

    Attributes:
        method: its name; "floor" is a student's step and a teacher's forward pass.
        tokens: length of the sequence.
        seconds: median of a step.
        ratio: median of the paired ratios to the floor's time.
        low: lower end of the ratio's 95 % interval (bootstrap).
        high: upper end.
        images: images a second.
        memory: peak memory of models and steps in bytes, by PyTorch's allocator.
        memory_ratio: memory against the floor's.
    """

    method: str
    tokens: int
    seconds: float
    ratio: float
    low: float
    high: float
    images: float
    memory: int
    memory_ratio: float


@dataclass(frozen=True)
class LeftOut:
    """A method that could not be measured at one image size.

    Attributes:
        method: its name.
        tokens: length of the sequence.
        reason: why, half a sentence.
    """

    method: str
    tokens: int
    reason: str


def measure_costs(config: MeasureCost) -> list[Cost]:
    """The verb `bench`."""
    problems: list[str] = []
    names = ["floor", *(name for name in parts_of(config.methods, "methods", problems) if name != "floor")]
    parts = parts_of(config.image_sizes, "image_sizes", problems)
    raise_all(problems)
    check_methods(names)
    sizes = _sizes(parts)
    chosen = choose_hardware(config.device, 1).device
    folder = expanded(config.out)
    raise_all(_problems(folder, config.model, overwrite=config.overwrite))
    check_writable(folder, needed_mb=1)
    first = Bench(config.model, sizes[0], config.batch_size, chosen, config.dtype, config.compiled)
    costs: list[Cost] = []
    left_out: list[LeftOut] = []
    with Display.open() as display, display.bar("bench", len(sizes) * len(names)) as bar:
        for size in sizes:
            fewer = max(1, round(config.batch_size * (sizes[0] / size) ** 2))
            setting = replace(first, image_size=size, batch_size=fewer)
            for result in measure(setting, names, config.repeats, note=bar.note):
                if isinstance(result, Cost):
                    costs.append(result)
                else:
                    left_out.append(result)
                bar.advance()
    _write(costs, left_out, first, config.repeats, folder)
    _show(costs, left_out)
    return costs


def _problems(folder: Path, model: str, *, overwrite: bool) -> list[str]:
    """Why the figures can't go into a folder."""
    if problems := folder_problems(folder, models=[model]):
        return problems
    there = [name for name in ("bench.json", "bench.png") if (folder / name).exists()]
    if there and not is_bench(folder):
        return [f"{folder / there[0]} was not written by this verb; choose another folder with --out"]
    if there and not overwrite:
        return [f"{folder / there[0]} exists; choose another folder with --out, or replace it with --overwrite"]
    return []


def _sizes(parts: list[str]) -> list[int]:
    try:
        sizes = [int(part) for part in parts]
    except ValueError as error:
        raise UserError(f"image_sizes is {','.join(parts)!r}; give whole numbers, separated by commas") from error
    if not sizes or min(sizes) < 1:
        raise UserError(f"image_sizes is {','.join(parts)!r}; give at least one number of pixels")
    return sizes


def measure(
    setting: Bench,
    methods: Sequence[str],
    repeats: int,
    *,
    make: Callable[[str, Bench], Runner] = runner,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[Cost | LeftOut]:
    """Each method beside the floor, one after the other: at most two are in memory.

    Args:
        setting: what all of them share.
        methods: their names.
        repeats: how often each method runs.
        make: makes a method ready to run.
        note: is told what is measured now.

    Yields:
        What a method costs, or why it was left out, as soon as that is known.
    """
    tokens = describe(teacher_of(setting)).sequence
    if setting.compiled:
        torch.compiler.reset()  # of a function, only so many versions are compiled, and the next one is not
    note(f"{tokens} tokens, floor")
    try:
        floor = make("floor", setting)
    except (UserError, RuntimeError) as error:
        yield from (LeftOut(name, tokens, f"{_reason(error)}, for the floor already") for name in methods)
        return
    with closing(floor):
        for name in methods:
            note(f"{tokens} tokens, {name}")
            try:
                result: Cost | LeftOut = _beside(floor, name, tokens, setting, repeats, make)
            except (UserError, RuntimeError) as error:
                result = LeftOut(name, tokens, _reason(error))
            gc.collect()  # only here, after the error and all that hung on it are gone
            if setting.device == "cuda":
                torch.cuda.empty_cache()
            yield result


def _beside(
    floor: Runner, name: str, tokens: int, setting: Bench, repeats: int, make: Callable[[str, Bench], Runner]
) -> Cost:
    with closing(make(name, setting)) as method:
        pairs = [_pair(floor, method) for _ in range(repeats)]
        return _cost(name, tokens, pairs, (floor.memory, method.memory), setting)


def _reason(error: UserError | RuntimeError) -> str:
    """Why a method can't be measured here; other errors are raised again."""
    if ran_out_of_memory(error):
        return f"out of memory with batches of this size ({str(error).splitlines()[0]})"
    if isinstance(error, BrokenProcessPool):
        return "the system ended its process, most likely for want of memory"
    if isinstance(error, UserError):
        return str(error)
    raise error


def _pair(floor: Runner, method: Runner) -> tuple[float, float]:
    """Seconds of a step of the floor and of the method, in random order."""
    if random.random() < 0.5:
        first = floor.seconds()
        return first, method.seconds()
    second = method.seconds()
    return floor.seconds(), second


def _cost(name: str, tokens: int, pairs: list[tuple[float, float]], memory: tuple[int, int], setting: Bench) -> Cost:
    of_floor, own = np.array(pairs).T
    ratios = own / of_floor
    resamples = np.median(np.random.default_rng(0).choice(ratios, (10_000, len(ratios))), axis=1)
    low, high = np.percentile(resamples, [2.5, 97.5])
    median = float(np.median(own))
    return Cost(
        method=name,
        tokens=tokens,
        seconds=median,
        ratio=float(np.median(ratios)),
        low=float(low),
        high=float(high),
        images=setting.batch_size / median,
        memory=memory[1],
        memory_ratio=memory[1] / max(1, memory[0]),
    )


def _write(costs: list[Cost], left_out: list[LeftOut], setting: Bench, repeats: int, folder: Path) -> None:
    report = {
        **asdict(setting),
        "repeats": repeats,
        "date": date.today().isoformat(),
        "threads": torch.get_num_threads(),
        "device_name": torch.cuda.get_device_name() if setting.device == "cuda" else platform.machine(),
        "versions": {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()},
        "costs": [asdict(cost) for cost in costs],
        "left_out": [asdict(result) for result in left_out],
    }
    write_whole(folder / "bench.json", json.dumps(report, indent=2) + "\n")
    lines = {
        method: [(c.tokens, c.ratio, c.memory_ratio) for c in costs if c.method == method]
        for method in METHODS
        if any(c.method == method for c in costs)
    }
    save(cost_chart(lines), folder / "bench.png")


def _show(costs: list[Cost], left_out: list[LeftOut]) -> None:
    table = Table("method", "tokens", "step, s", "images/s", "GB", "time ÷ floor (95 %)", "memory ÷ floor")
    for cost in costs:
        table.add_row(
            cost.method,
            str(cost.tokens),
            f"{cost.seconds:.3f}",
            f"{cost.images:.1f}",
            f"{cost.memory / 1e9:.2f}",
            f"{cost.ratio:.2f} ({cost.low:.2f} to {cost.high:.2f})",
            f"{cost.memory_ratio:.2f}",
        )
    console = Console()
    console.print(table)
    for result in left_out:
        console.print(f"{result.method} at {result.tokens} tokens is left out: {result.reason}", markup=False)
