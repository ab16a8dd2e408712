"""The verb `demo`: what attention transfer does, on real images, in a few minutes."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text

from attention_transfer.arguments import verb
from attention_transfer.errors import UserError
from attention_transfer.experiments.compare import Comparison, compare
from attention_transfer.experiments.results import by_labels, lines, table
from attention_transfer.training import console, pretrain

log = logging.getLogger("attention_transfer")


@verb
def demo(*, quick: bool = False, full: bool = False, out: str = "runs/demo") -> list[Comparison]:
    """Pre-train a teacher on handwritten digits without labels, then train students with few labels and its attention.

    Needs no network and no GPU. Shows a table, writes figures and a page, and says what to try next. A demo that was
    interrupted goes on by the same command.

    Args:
        quick: a smoke test under a minute: one seed, a few epochs; its numbers mean nothing.
        full: the experiment of the README: a longer pre-training, five seeds, 5 and 15 labels a class.
        out: folder for everything; quick and full get one of their own beside it.

    Returns:
        The comparison, with a row for each run; two of them for full.

    Raises:
        UserError: both quick and full are asked for, or the folder can't be used.
    """
    if quick and full:
        raise UserError("quick and full exclude each other; choose one")
    folder = Path(out + "-quick" * quick + "-full" * full)
    console.print(
        Text.assemble(
            ("attention-transfer demo", "bold"),
            ": 1,797 handwritten digits. A vision transformer learns from the training images without labels (masked "
            "autoencoding); then students learn from 5 labelled images of each digit, with or without its attention.",
        )
    )
    with _one_thread():
        # Epochs fit the time that was promised; full keeps the defaults, and as many steps with more labels.
        teacher = str(pretrain(epochs=2 if quick else None if full else 80, out=str(folder / "teacher")).path)
        if quick:
            comparisons = [compare(seeds="0", shots="5", epochs=2, teacher=teacher, out=str(folder / "5shot"))]
        elif full:
            five = "0,1,2,3,4"
            comparisons = [
                compare(seeds=five, shots="5", teacher=teacher, out=str(folder / "5shot")),
                compare(seeds=five, shots="15", epochs=66, teacher=teacher, out=str(folder / "15shot")),
            ]
        else:
            comparisons = [compare(seeds="0,1,2", shots="5", epochs=100, teacher=teacher, out=str(folder / "5shot"))]
    for comparison in comparisons:
        _show(comparison, meaningless=quick)
    return comparisons


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: in matrices as small as the demo's, more wait for each other longer than they work."""
    threads = torch.get_num_threads()
    if threads > 1:
        log.info("one thread instead of %d: the demo's network is so small that more threads would slow it", threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _show(comparison: Comparison, *, meaningless: bool) -> None:
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
    text = Text.assemble(
        ("The page", "bold"),
        f" with pictures of attention: {folder / 'report.html'}\n"
        f"The table: {folder / 'results.md'}, a row a run: {folder / 'results.csv'}, the runs: {folder / 'runs'}\n",
        ("Next", "bold"),
        f"\n  attention-transfer predict {run} IMAGE.png\n"
        f"  attention-transfer train --preset distill --teacher {teacher} --fraction 0.15\n"
        f"  attention-transfer compare --teacher {teacher} --presets scratch,finetune,distill "
        "--shots 5,15 --seeds 0,1,2",
    )
    console.print(text, soft_wrap=True)
