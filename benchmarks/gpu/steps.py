"""Stage b: what each method costs a training step against the floor, as `attention-transfer bench` measures it.

Distillation by every route of the library and by materialised maps, copy, GTA and fine-tuning; bfloat16, plain and
compiled. Groups come in order of worth. What is compiled has BLOCKS blocks of its network, since a compiler takes a
minute for 24 of them, and a step's ratio to the floor is that of a block. `run.sh` has the first compiled group
compiled while stage a runs, in which nothing is timed: in processes of their own, for the caches of Inductor and
Triton, where this stage finds them.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import timm
import torch

from attention_transfer.errors import UserError
from attention_transfer.experiments.bench import Cost, measure
from attention_transfer.experiments.steps import ROUTES, Bench
from attention_transfer.vit import save_vit
from benchmarks.gpu import card as cards
from benchmarks.gpu.card import Card
from benchmarks.gpu.report import Report
from benchmarks.gpu.stand_in import tiny_vit

FUSED = ["distill-triton", "distill-flash"]
OTHERS = [f"distill-{route}" for route in ROUTES if f"distill-{route}" not in FUSED]
METHODS = [*FUSED, "copy", "gta", "materialised", "finetune", *OTHERS, "floor"]
COMPILED = [FUSED[0], "gta", "copy", FUSED[1]]
"""Fewer: each takes its time to compile."""

BLOCKS = 6
L_197 = Bench("timm/vit_large_patch16_224", 224, 64, "cuda", "bfloat16", compiled=False)
L_1370 = Bench("timm/vit_large_patch14_dinov2", 518, 8, "cuda", "bfloat16", compiled=False)
B_197 = Bench("timm/vit_base_patch16_224", 224, 128, "cuda", "bfloat16", compiled=False)
B_1370 = Bench("timm/vit_base_patch14_dinov2", 518, 16, "cuda", "bfloat16", compiled=False)
S_197 = Bench("timm/vit_small_patch16_224", 224, 256, "cuda", "bfloat16", compiled=False)


def compiled(setting: Bench) -> Bench:
    """A compiled step of the first blocks of a group's network."""
    return replace(setting, model=shallow(setting.model.removeprefix("timm/")), compiled=True)


@cache
def shallow(architecture: str) -> str:
    """The folder of a network of timm with fewer blocks and random weights; it is removed when this process ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / f"{architecture}, {BLOCKS} blocks"
    save_vit(timm.create_model(architecture, depth=BLOCKS, num_classes=0), path)
    return str(path)


def tiny() -> Bench:
    """What a rehearsal measures."""
    return Bench(tiny_vit(), 8, 1, "cpu", "bfloat16", compiled=False)


def run(card: Card, report: Report) -> None:
    """Every group, method by method."""
    if card.rehearsed:
        torch.compiler.set_stance("force_eager")  # compiling for the CPU would take longer than all the rest
    repeats = 1 if card.rehearsed else 15
    report.note(repeats=repeats)
    try:
        if card.rehearsed:
            warm(card)
        for setting in groups(card):
            _group(card, report, setting, repeats)
    finally:
        if card.rehearsed:
            torch.compiler.set_stance("default")


def groups(card: Card) -> Iterator[Bench]:
    """In order of worth; a network is made when its turn comes."""
    if card.rehearsed:
        yield from (replace(tiny(), compiled=True), tiny())
        return
    for setting in (L_197, L_1370):
        yield setting
        yield compiled(setting)
    yield from (B_197, B_1370, S_197)
    yield from (compiled(setting) for setting in (B_197, B_1370, S_197))


def _group(card: Card, report: Report, setting: Bench, repeats: int) -> None:
    methods = COMPILED if setting.compiled else METHODS
    case = {"model": Path(setting.model).name, "compiled": setting.compiled, "batch_size": setting.batch_size}
    if report.time_left() <= 0:
        report.add(case | {"left_out": "the stage's time was up"})
        return
    for result in measure(setting, methods, repeats, make=card.runner):
        if isinstance(result, Cost):
            report.add(case | asdict(result))
        else:
            report.add(case | {"method": result.method, "tokens": result.tokens, "left_out": result.reason})
        if report.time_left() <= 0:
            report.add(case | {"left_out": f"the stage's time was up after {result.method}"})
            return


def warm(card: Card) -> None:
    """Compile the steps of the first compiled group, each in a process of its own, and run each once."""
    setting = next(setting for setting in groups(card) if setting.compiled)
    for (_, _, _, method), error in card.apart(
        [(_warm, card.rehearsed, setting, name) for name in ("floor", *COMPILED)]
    ):
        print(f"compiled {method} of {Path(setting.model).name}: {error or 'done'}", flush=True)


def _warm(rehearse: bool, setting: Bench, method: str) -> str | None:
    """Why there is no such step here, or `None`."""
    try:
        with closing(cards.find(rehearse=rehearse).runner(method, setting)):
            return None
    except (UserError, RuntimeError) as error:
        return cards.sentence(error)
