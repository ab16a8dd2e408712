"""The search of a sweep: settings by TPE, each over seeds on validation, pruned by Wilcoxon's test."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from attention_transfer.config.base import members
from attention_transfer.config.training import Compare
from attention_transfer.config.values import brought
from attention_transfer.data import SharedPixels
from attention_transfer.errors import UserError, raise_all
from attention_transfer.experiments.cells import DECODED
from attention_transfer.experiments.grid import Cell, in_words, repeated, run_of, setting_named
from attention_transfer.experiments.rows import Labels
from attention_transfer.experiments.studies import Entry, Study
from attention_transfer.experiments.workers import POLL, Computed
from attention_transfer.training.train import validate_student
from attention_transfer.transfer import Rule

log = logging.getLogger("attention_transfer")

PRUNED_BELOW = 0.13
"""p of Wilcoxon's one-sided test at which a configuration is given up: three seeds that all are worse have 0.125."""

_BOUND = ".."  # between the two ends of a range


@dataclass(frozen=True)
class Trialled:
    """One configuration of a search.

    Attributes:
        settings: by their dotted names.
        accuracies: on validation, a seed each, in the order of the seeds; fewer where it was pruned.
        cross_entropies: the same, in nats.
        pruned: whether it was given up before its last seed.
    """

    settings: Mapping[str, Any]
    accuracies: tuple[float, ...]
    cross_entropies: tuple[float, ...]
    pruned: bool

    @property
    def order(self) -> tuple[float, float]:
        """Sort key; larger is better. Cross-entropy decides where accuracies are equal."""
        count = len(self.accuracies)
        return sum(self.accuracies) / count, -sum(self.cross_entropies) / count


@dataclass(frozen=True)
class Search:
    """One search; it is sent to the workers.

    Attributes:
        config: what all runs share, with the one method as its presets.
        folder: of the search, with `runs/` in it.
        labels: how many labels a run gets.
        space: what is searched.
        seeds: of the search.
        runs: budget.
        until: when the last configuration may begin, in seconds since 1970; `None` for no limit.
    """

    config: Compare
    folder: Path
    labels: Labels
    space: Mapping[str, BaseDistribution]
    seeds: Sequence[int]
    runs: int
    until: float | None

    def work(self, study: Study) -> None:
        """Try one configuration after the other, until the budget has ended, here and elsewhere."""
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=PRUNED_BELOW)
        shared = optuna.load_study(study_name=study.name, storage=study.storage, pruner=pruner)
        while True:
            entry = study.claim([e.name for e in study.entries().values() if not e.ended]) or self._asked(study, shared)
            if entry is not None:
                self._claimed(study, shared, entry)
            elif all(e.ended for e in study.entries().values()):
                return
            else:
                time.sleep(POLL)

    def tried(self, study: Study) -> list[Trialled]:
        """What is known so far."""
        ended = [entry.result for entry in study.entries().values() if entry.result is not None]
        return [
            Trialled(r["settings"], tuple(r["accuracies"]), tuple(r["cross_entropies"]), r["pruned"]) for r in ended
        ]

    def has_budget(self, study: Study) -> bool:
        """Whether another configuration may begin; the first one always may."""
        known = study.entries().values()
        begun = sum(len(e.result["accuracies"]) if e.result else len(self.seeds) for e in known)
        late = self.until is not None and time.time() > self.until
        return not known or (begun + len(self.seeds) <= self.runs and not late)

    def _claimed(self, study: Study, shared: optuna.Study, entry: Entry) -> None:
        try:
            with study.alive(entry):
                study.finish(entry, *self._tried(study, shared, entry))
        except UserError as error:  # as of a loss that is no number
            log.warning("%s failed: %s", entry.name, error)
            study.fail(entry, str(error))
        except BaseException:
            study.release(entry)
            raise

    def _asked(self, study: Study, shared: optuna.Study) -> Entry | None:
        """A new configuration, if the budget is not spent; it depends on those before it alone."""
        with study.turn():
            known = study.entries()
            if not self.has_budget(study):
                return None
            (seed,) = np.random.SeedSequence([*self.seeds, len(known)]).generate_state(1)
            shared.sampler = optuna.samplers.TPESampler(seed=int(seed), n_startup_trials=8)
            trial = shared.ask(dict(self.space))
            return study.adopt(trial.number, f"search-{trial.number}")

    def _tried(self, study: Study, optuna_study: optuna.Study, entry: Entry) -> Computed:
        """Validate a configuration seed by seed, until it is known to be worse than the best one."""
        ident = study.storage.get_trial_id_from_study_id_trial_number(study.ident, entry.number)
        trial, scores, pruned = Trial(optuna_study, ident), [], False
        shared = SharedPixels(self.folder / DECODED)
        settings, reported = dict(trial.params), study.storage.get_trial(ident).intermediate_values
        for step, seed in enumerate(self.seeds):
            cell = Cell(str(self.config.presets), replace(self.labels, settings=in_words(settings)), seed, settings)
            scores.append(validate_student(run_of(self.config, cell, self.folder), shared))
            if step not in reported:
                trial.report(scores[-1].accuracy, step)
            if step + 1 < len(self.seeds) and trial.should_prune():
                pruned = True
                break
        accuracies = [score.accuracy for score in scores]
        mean = sum(accuracies) / len(accuracies)
        shown = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in settings.items()
        )
        log.info(
            "%s: validation accuracy %.1f %% over %d seeds%s", shown, 100 * mean, len(scores), ", given up" * pruned
        )
        result = {
            "settings": settings,
            "accuracies": accuracies,
            "cross_entropies": [score.cross_entropy for score in scores],
            "pruned": pruned,
        }
        return mean, result


def space_of(
    search: Mapping[str, Sequence[object]], rules: Sequence[Rule], problems: list[str]
) -> dict[str, BaseDistribution]:
    """What is searched, as Optuna takes it; what is wrong goes to the problems."""
    found: dict[str, BaseDistribution] = {}
    full_names: dict[str, str] = {}
    for name, values in search.items():
        try:
            full, setting = setting_named(name, rules, "search")
            full_names[name] = full
            found[full] = _distribution(f"search.{name}", list(values), setting.kind)
        except UserError as error:
            problems.append(str(error))
    problems += repeated("search", full_names, full_names.get)
    return found


def _distribution(name: str, values: list[object], kind: Any) -> BaseDistribution:
    if len(values) == 1 and _BOUND in str(values[0]):
        low, high = (brought(part.strip(), float, name) for part in str(values[0]).split(_BOUND, 1))
        if not low < high:
            raise UserError(f"{name} is {values[0]}, which is no range; give the lower end first, e.g. 0.01..10")
        log_scale = low > 0 and high / low >= 10
        if float not in members(kind):
            if int not in members(kind):
                raise UserError(f"{name} is no number, so it has no range; give values, separated by commas")
            return IntDistribution(int(low), int(high), log=log_scale)
        return FloatDistribution(low, high, log=log_scale)
    if len(values) < 2:
        raise UserError(f"{name} has nothing to choose from; give a range, e.g. 0.01..10, or several values")
    choices = [brought(value, kind, name) for value in values]
    if any(isinstance(choice, list) for choice in choices):
        raise UserError(f"{name} can't be searched among lists; compare them with compare --grid")
    raise_all(repeated(name, choices))
    return CategoricalDistribution(choices)
