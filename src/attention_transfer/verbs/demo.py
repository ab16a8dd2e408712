"""The verb `demo`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.demo import Demo
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.experiments import Comparison


@verb(Demo, resumes=True, extra="train", studies=True)
def demo(config: Demo) -> list[Comparison]:
    """Show what attention transfer does, on photographs: methods learn to read signs from few labels.

    The teacher has learnt to read printed characters; the students learn handwritten digits. Needs no network and no
    GPU. Shows a table, writes figures and a page, and says what to try next. A demo that was interrupted goes on by the
    same command.

    Returns:
        The comparison, with a row for each run; two of them for full.

    Raises:
        UserError: both quick and full are asked for, or the folder can't be used.
    """
    from attention_transfer.experiments.demo import show_demo

    return show_demo(config)
