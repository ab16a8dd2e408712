"""The verb `sweep`: what it searches, that validation alone decides, and that it goes on where it was stopped."""

from __future__ import annotations

import csv
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from attention_transfer import UserError, sweep
from attention_transfer.config.training import Train
from attention_transfer.data import SharedPixels
from attention_transfer.errors import Interrupted, UserErrors
from attention_transfer.experiments.search import space_of
from attention_transfer.experiments.sweep import SweepResult
from attention_transfer.training import Run
from attention_transfer.training.tune import TrialScore
from attention_transfer.transfer import Guide

SEARCH: dict[str, list[object]] = {"rules.weight": ["0.01..10"]}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Train]:
    """Trainings that are only calculated: validation is best at a weight of 1, test grows with the weight."""
    seen: list[Train] = []

    def weight(config: Train) -> float:
        assert config.rules is not None or config.seed >= 5
        return float(config.rules[0].weight) if config.rules else 0.1  # type: ignore[attr-defined]

    def validate(config: Train, shared: SharedPixels) -> TrialScore:
        seen.append(config)
        off = abs(float(f"{weight(config):.6g}") - 1.0) / 20
        return TrialScore(0.8 - min(0.5, off) + 0.001 * (config.seed % 3), 1.0)

    def tested(config: Train, shared: SharedPixels) -> Run:
        seen.append(config)
        Path(str(config.out)).mkdir(parents=True, exist_ok=True)
        (Path(str(config.out)) / "summary.json").write_text("{}")
        accuracy = {"accuracy": 0.5 + weight(config) / 100 + 0.001 * config.seed, "cross_entropy": 1.0}
        scores = {**accuracy, "calibration_error": 0.1}
        train = {"images": 10, "steps": 4, "seconds": 1.0}
        named = {"preset": config.preset, "seed": config.seed, "best_epoch": 1, "train": train}
        return Run(Path(str(config.out)), {**named, "test": scores, "validation": scores})

    monkeypatch.setattr(import_module("attention_transfer.experiments.search"), "validate_student", validate)
    monkeypatch.setattr(import_module("attention_transfer.experiments.cells"), "train_student", tested)
    return seen


@pytest.fixture
def swept(teacher: str, tmp_path: Path) -> Callable[..., SweepResult]:
    def run(**changes: Any) -> SweepResult:
        settings = {"teacher": teacher, "shots": "1", "search": SEARCH, "runs": 60, "out": str(tmp_path / "s")}
        return sweep(**{**settings, **changes})

    return run


def test_the_best_on_validation_is_tested_once_on_fresh_seeds(
    trained: list[Train], swept: Callable[..., SweepResult]
) -> None:
    (best,) = swept().found
    assert 0.2 < best.settings["rules.weight"] < 3  # test alone would take 10
    fresh = [row for row in best.rows if row.seed >= 5]
    assert len(fresh) == len(best.rows) == 12
    assert {row.seed for row in best.rows} == {5, 6, 7, 8, 9, 10}
    assert best.difference.interval.mean == pytest.approx((best.settings["rules.weight"] - 0.1) / 100)
    assert len([config for config in trained if config.seed < 5]) <= 60
    given_up = [one for one in best.tried if one.pruned]
    assert given_up
    assert all(len(one.accuracies) < 5 for one in given_up)
    assert all(len(one.accuracies) == 5 for one in best.tried if not one.pruned)
    assert best.settings == max((one for one in best.tried if not one.pruned), key=lambda one: one.order).settings


def test_the_curve_has_every_configuration(
    trained: list[Train], swept: Callable[..., SweepResult], tmp_path: Path
) -> None:
    (best,) = swept(runs=30).found
    with (tmp_path / "s" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(float(r["rules.weight"]) for r in rows) == sorted(one.settings["rules.weight"] for one in best.tried)
    whole = [r for r in rows if r["pruned"] == "False"]
    assert all(float(r["low"]) < float(r["validation_accuracy"]) < float(r["high"]) for r in whole)
    assert (tmp_path / "s" / "curve.png").stat().st_size > 10_000
    assert "On fresh seeds, tested once: " in (tmp_path / "s" / "sweep.md").read_text()


def test_a_sweep_that_was_stopped_goes_on_and_ends_with_the_same(
    trained: list[Train], swept: Callable[..., SweepResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = swept(runs=25, out=str(tmp_path / "whole"))
    trained.clear()
    module = import_module("attention_transfer.experiments.search")
    compute = module.validate_student

    def stopping(config: Train, shared: SharedPixels) -> TrialScore:
        if len(trained) == 7:
            raise Interrupted
        return compute(config, shared)  # type: ignore[no-any-return] # of a module

    monkeypatch.setattr(module, "validate_student", stopping)
    with pytest.raises(Interrupted):
        swept(runs=25)
    monkeypatch.setattr(module, "validate_student", compute)
    again = swept(runs=25)
    assert [one.settings for one in again.found[0].tried] == [one.settings for one in whole.found[0].tried]
    assert again.found[0].settings == whole.found[0].settings
    with pytest.raises(UserError, match=r"another sweep \(seeds is"):
        swept(seeds="0,1")


def test_a_range_is_logarithmic_where_it_spans_a_factor_of_ten() -> None:
    problems: list[str] = []
    asked: dict[str, list[object]] = {
        "weight": ["0.01..10"],
        "lr": ["0.001..0.002"],
        "epochs": ["2..9"],
        "pool": ["token", "avg"],
    }
    assert space_of(asked, [Guide()], problems) == {
        "rules.weight": FloatDistribution(0.01, 10, log=True),
        "recipe.lr": FloatDistribution(0.001, 0.002),
        "epochs": IntDistribution(2, 9),
        "pool": CategoricalDistribution(["token", "avg"]),
    }
    assert problems == []
    space_of({"weigth": ["1..2"], "lr": ["2..1"], "pool": ["1..2"], "init": ["random"]}, [Guide()], problems)
    assert problems == [
        "search can't change 'weigth'; did you mean 'rules.weight'?",
        "search.lr is 2..1, which is no range; give the lower end first, e.g. 0.01..10",
        "search.pool is no number, so it has no range; give values, separated by commas",
        "search.init has nothing to choose from; give a range, e.g. 0.01..10, or several values",
    ]


def test_what_is_searched_twice_is_refused() -> None:
    problems: list[str] = []
    space_of({"lr": ["1e-3..1"], "recipe.lr": ["1..2"], "pool": ["avg", "token", "avg"]}, [Guide()], problems)
    assert problems == [
        "search.pool has 'avg' twice; name each once",
        "search has 'lr' and 'recipe.lr', which are the same; name each once",
    ]


def test_mistakes_are_listed_and_nothing_is_written(swept: Callable[..., SweepResult], tmp_path: Path) -> None:
    with pytest.raises(UserErrors) as caught:
        swept(search=None, runs=0, workers=0, fresh=1)
    assert len(str(caught.value).splitlines()) == 4
    with pytest.raises(UserError, match="tunes its teacher first"):
        swept(preset="logit-kd")
    assert not list(tmp_path.iterdir())
