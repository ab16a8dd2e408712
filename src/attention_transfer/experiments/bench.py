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

from attention_transfer.arguments import parts_of, verb
from attention_transfer.engine.memory import ran_out_of_memory
from attention_transfer.errors import UserError, raise_all
from attention_transfer.experiments.runners import Runner, runner
from attention_transfer.experiments.steps import METHODS, Bench, check_methods, teacher_of
from attention_transfer.folders import is_bench
from attention_transfer.places import check_writable, expanded, folder_problems
from attention_transfer.training import Device, Display, choose_hardware
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


@verb
def bench(
    model: str = "timm/vit_small_patch16_224",
    *,
    methods: str = "floor,finetune,copy,distill,distill-reference,gta,logit-kd",
    image_sizes: str = "224",
    batch_size: int = 8,
    repeats: int = 10,
    device: Device = "cpu",
    dtype: str = "float32",
    compiled: bool = False,
    out: str = "runs/bench",
    overwrite: bool = False,
) -> list[Cost]:
    """Measure what each method costs a step, in time and memory, against the floor.

    The floor is a student's step and a teacher's forward pass. A method's steps alternate with the floor's, in random
    order, so that each ratio is of one moment; the floor's own line, two of it side by side, shows the noise. On the
    CPU both run in processes of their own.

    Args:
        model: architecture of teacher and student, in the forms of load_vit; weights are random.
        methods: separated by commas: floor, finetune, logit-kd, copy, distill (and each of its implementations:
            distill-reference, distill-chunked, distill-flash, distill-flex, distill-triton), materialised
            (distillation by maps in the step's own dtype), gta. One that can't serve here, or for which memory is too
            small, is left out, with the reason.
        image_sizes: input pixels, height and width, separated by commas.
        batch_size: images a step, at the first image size; fewer at larger ones, so that tokens a step stay alike.
        repeats: how often each method runs.
        device: where to compute: cpu, cuda or mps; auto takes a GPU where there is one. MPS counts no peak of memory:
            there it is what is allocated after a step.
        dtype: float32, or bfloat16 or float16 for autocast.
        compiled: run the steps through torch.compile.
        out: folder for bench.json and bench.png.
        overwrite: replace these two in that folder.

    Returns:
        A record for each method and image size that could be measured.

    Raises:
        UserError: there is no such method, device or model.
    """
    problems: list[str] = []
    names = ["floor", *(name for name in parts_of(methods, "methods", problems) if name != "floor")]
    parts = parts_of(image_sizes, "image_sizes", problems)
    raise_all(problems)
    check_methods(names)
    sizes = _sizes(parts)
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"dtype is {dtype}; choose float32, bfloat16 or float16")
    chosen = choose_hardware(device, 1).device
    if min(batch_size, repeats) < 1:
        raise UserError("batch_size and repeats must be at least 1")
    folder = expanded(out)
    raise_all(_problems(folder, model, overwrite=overwrite))
    check_writable(folder, needed_mb=1)
    first = Bench(model, sizes[0], batch_size, chosen, dtype, compiled)
    costs: list[Cost] = []
    left_out: list[LeftOut] = []
    with Display.open() as display, display.bar("bench", len(sizes) * len(names)) as bar:
        for size in sizes:
            fewer = max(1, round(batch_size * (sizes[0] / size) ** 2))
            for result in measure(replace(first, image_size=size, batch_size=fewer), names, repeats, note=bar.note):
                if isinstance(result, Cost):
                    costs.append(result)
                else:
                    left_out.append(result)
                bar.advance()
    _write(costs, left_out, first, repeats, folder)
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
