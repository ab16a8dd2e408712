"""A short search of the learning rate on the validation split, by successive halving."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from attention_transfer.errors import nearest
from attention_transfer.training.hardware import Devices, launched_processes
from attention_transfer.training.recipe import ResolvedRecipe

log = logging.getLogger("attention_transfer")

Tune = Literal["lr"]
"""What is searched before a training."""

FACTORS = (1 / 9, 1 / 3, 1.0, 3.0, 9.0)
"""Rates that are tried, as factors on the recipe's own."""

_ROUNDS = ((5, 1 / 10), (2, 1 / 4))  # how many rates, for which share of the training


@dataclass(frozen=True)
class TrialScore:
    """Validation accuracy in [0, 1], and cross-entropy in nats, which decides where accuracies are equal."""

    accuracy: float
    cross_entropy: float

    @property
    def order(self) -> tuple[float, float]:
        """Sort key; larger is better."""
        return self.accuracy, -self.cross_entropy


def tune_problems(tune: Tune | None, devices: Devices, nodes: int | None) -> list[str]:
    """Why the search can't be run, a sentence each."""
    if tune is None:
        return []
    if tune not in get_args(Tune):
        return [f"tune is {tune!r}; {nearest(tune, get_args(Tune))}"]
    if devices not in (None, 1) or nodes not in (None, 1) or launched_processes() is not None:
        return ["tune searches on one device; search there, then give recipe.lr to the run on several"]
    return []


def tuned(recipe: ResolvedRecipe, trial: Callable[[ResolvedRecipe, str], TrialScore], *, name: str) -> ResolvedRecipe:
    """The recipe with the best of five learning rates; the search costs about as much as the training itself.

    All five for a tenth of the epochs, then the best two for a quarter (Jamieson and Talwalkar 2016, arXiv 1502.07943).

    Args:
        recipe: what is to be trained; its rate is the middle one.
        trial: trains by a shorter recipe, in a place of this name, and gives its validation score.
        name: for the log.
    """
    rates = tried = [float(f"{recipe.lr * factor:.2g}") for factor in FACTORS]
    for number, share in _ROUNDS:
        epochs = max(1, round(share * recipe.epochs))
        scores = {}
        for rate in rates[:number]:
            short = replace(recipe, lr=rate, epochs=epochs, validate_every=epochs, head_epochs=0, early_stopping=None)
            scores[rate] = trial(short, f"lr-{rate:g}-epochs-{epochs}")
        rates = sorted(scores, key=lambda rate: scores[rate].order, reverse=True)
        shown = ", ".join(f"{rate:g}: {100 * scores[rate].accuracy:.1f} %" for rate in sorted(scores))
        log.info("%s: validation accuracy after %d epochs by learning rate: %s", name, epochs, shown)
    best = rates[0]
    at_edge = not min(tried) < best < max(tried)
    log.info("%s: learning rate %g%s", name, best, ", at the edge of what was tried" if at_edge else "")
    return replace(recipe, lr=best)
