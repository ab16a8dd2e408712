"""The verb `demo`: what attention transfer does, on photographs, in a few minutes."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text

from attention_transfer.config.demo import Demo
from attention_transfer.config.recipe import Recipe
from attention_transfer.config.training import Compare, Pretrain
from attention_transfer.experiments.compare import Comparison, compare_methods
from attention_transfer.experiments.results import lines, table
from attention_transfer.experiments.rows import by_labels
from attention_transfer.training.pretrain import pretrain_teacher
from attention_transfer.ui import console

log = logging.getLogger("attention_transfer")


_TEACHER, _DATA = "builtin/vit_characters", "digit-scenes"
_SCENES = Recipe(augment="none", batch_size=50)
"""For signs on a grid: the other values follow from what is trained. A batch of 50 divides 5 and 20 labels a class."""


def show_demo(config: Demo) -> list[Comparison]:
    """The verb `demo`."""
    quick, full = config.quick, config.full
    folder = Path(config.out + "-quick" * quick + "-full" * full)
    console.print(Text.assemble(("attention-transfer demo", "bold"), ": ", _DIGITS_ALONE if quick else _PHOTOGRAPHS))
    with _one_thread():
        comparisons = _digits_alone(folder) if quick else [*_photographs(folder, full=full)]
    for comparison in comparisons:
        _show(comparison, data="digits" if quick else _DATA, meaningless=quick)
    return comparisons


_DIGITS_ALONE = (
    "1,797 handwritten digits. A vision transformer learns from the training images without labels (masked "
    "autoencoding); then students learn from 5 labelled images of each digit, with or without its attention."
)
_PHOTOGRAPHS = (
    "photographs with a sign somewhere. The teacher, a small vision transformer, has learnt to read printed "
    "characters; now students learn handwritten digits from few labelled images, with its weights, its attention, or "
    "neither. None has seen the photographs of the test images."
)


def _digits_alone(folder: Path) -> list[Comparison]:
    teacher = str(pretrain_teacher(Pretrain(epochs=2, out=str(folder / "teacher"))).path)
    return [compare_methods(Compare(seeds="0", shots="5", epochs=2, teacher=teacher, out=str(folder / "5shot")))]


def _photographs(folder: Path, *, full: bool) -> Iterator[Comparison]:
    """As many steps for every method and amount of labels; those of the plain demo fit the time that was promised."""
    steps, seeds = (200, "0,1,2,3,4,5") if full else (64, "0,1,2")
    for shots in (5, 20) if full else (20,):
        epochs = steps * 50 // (10 * shots)
        place = str(folder / f"{shots}shot")
        grid = Compare(seeds=seeds, shots=str(shots), epochs=epochs, recipe=_SCENES, out=place)
        yield compare_methods(replace(grid, teacher=_TEACHER, data=_DATA))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: in matrices as small as the demo's, more wait for each other longer than they work."""
    threads = torch.get_num_threads()
    if threads > 1:
        log.debug("one thread instead of %d: the demo's network is so small that more threads would slow it", threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _show(comparison: Comparison, *, data: str, meaningless: bool) -> None:
    for title, group in by_labels(comparison.rows).items():
        head, *body = table(lines(group))
        shown = Table(*head, title=f"{title} ({group[0].images} images)")
        for line in body:
            shown.add_row(*line)
        console.print(shown)
    if meaningless:
        console.print("Two epochs teach nothing: these numbers only show that everything runs.")
    folder = comparison.path
    run, teacher = shlex.quote(comparison.rows[-1].run), shlex.quote(comparison.teacher)
    given = f"--data {data} --teacher {teacher}"
    text = Text.assemble(
        ("The page", "bold"),
        f" with pictures of attention: {folder / 'report.html'}\n"
        f"The table: {folder / 'results.md'}, a row a run: {folder / 'results.csv'}, the runs: {folder / 'runs'}\n",
        ("Next", "bold"),
        f"\n  attention-transfer predict {run} IMAGE.png\n"
        f"  attention-transfer train --preset distill {given} --fraction 0.15\n"
        f"  attention-transfer compare {given} --presets scratch,finetune,distill --shots 5,15 --seeds 0,1,2\n"
        "  attention-transfer train --preset gta --teacher timm/vit_small_patch16_224.dino --data YOUR-FOLDER",
    )
    console.print(text, soft_wrap=True)
