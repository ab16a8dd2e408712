"""The verb `bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.bench import MeasureCost
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.experiments import Cost


@verb(MeasureCost, extra="train")
def bench(config: MeasureCost) -> list[Cost]:
    """Measure what each method costs a step, in time and memory, against the floor.

    The floor is a student's step and a teacher's forward pass. A method's steps alternate with the floor's, in random
    order, so that each ratio is of one moment; the floor's own line, two of it side by side, shows the noise. On the
    CPU both run in processes of their own.

    Returns:
        A record for each method and image size that could be measured.

    Raises:
        UserError: there is no such method, device or model.
    """
    from attention_transfer.experiments.bench import measure_costs

    return measure_costs(config)
