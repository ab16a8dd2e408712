"""The verb `sweep`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.sweep import Sweep
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.experiments import SweepResult


@verb(Sweep, resumes=True, extra="train", studies=True)
def sweep(config: Sweep) -> SweepResult:
    """Find the settings that a method needs, on validation, and test them once on fresh seeds against the defaults.

    Settings are searched by TPE, each over several seeds; Wilcoxon's test gives up what is worse than the best. A sweep
    that was interrupted goes on by the same command. Writes every configuration (curve.csv), a figure and a sentence.

    Returns:
        The folder, and for each amount of labels the best settings and how far they differ from the defaults.

    Raises:
        UserError: the input is wrong; every mistake is listed, and nothing was written.
    """
    from attention_transfer.experiments.sweep import sweep_settings

    return sweep_settings(config)
