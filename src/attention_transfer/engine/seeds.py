"""Seeds for torch, numpy and python together."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the generators of torch, on all devices, numpy and python by a number of 32 bits."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside the block, and leave the generators of the caller as they were."""
    with _restored():
        seed_everything(seed)
        yield


@contextmanager
def drawn_from(*entropy: int) -> Iterator[None]:
    """Draw on the CPU from these numbers, at least 0, inside the block; the generators of devices are left alone."""
    with _restored():
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def _restored() -> Iterator[None]:
    """Leave the generators of the CPU as they were before the block."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
