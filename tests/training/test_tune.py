"""The search of a learning rate: successive halving on validation, in folders beside the run."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from attention_transfer import UserError, train
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.training import Recipe, ResolvedRecipe, RunFolder
from attention_transfer.training.tune import TrialScore, tuned

RECIPE = ResolvedRecipe(epochs=40, lr=0.01)


def search(scores: dict[float, TrialScore]) -> tuple[float, list[tuple[float, int]]]:
    """The rate that is found, and the trials: rate and epochs."""
    trials: list[tuple[float, int]] = []

    def trial(recipe: ResolvedRecipe, place: str) -> TrialScore:
        assert recipe.validate_every == recipe.epochs
        trials.append((recipe.lr, recipe.epochs))
        return scores.get(recipe.lr, TrialScore(0.0, 9.0))

    return tuned(RECIPE, trial, name="a run").lr, trials


def test_five_rates_are_tried_shortly_and_the_best_two_for_longer() -> None:
    found, trials = search({0.0033: TrialScore(0.6, 1.0), 0.03: TrialScore(0.7, 1.0), 0.09: TrialScore(0.5, 1.0)})
    assert found == 0.03
    assert trials == [(r, 4) for r in (0.0011, 0.0033, 0.01, 0.03, 0.09)] + [(0.03, 10), (0.0033, 10)]


def test_of_equal_accuracies_the_lower_cross_entropy_is_better() -> None:
    assert search({0.01: TrialScore(0.6, 1.0), 0.03: TrialScore(0.6, 0.9)})[0] == 0.03
    assert search({0.01: TrialScore(0.6, 0.9), 0.03: TrialScore(0.6, 1.0)})[0] == 0.01


def test_the_rate_that_was_found_stands_in_the_configuration_and_nothing_is_searched_twice(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(epochs=4, batch_size=10, validate_every=2, lr=1e-3)
    out = tmp_path / "run"
    run = train("finetune", teacher=teacher, shots=1, recipe=recipe, tune="lr", out=str(out))
    config = read_mapping(out / "config.yaml")
    assert config["recipe"]["lr"] in (1.1e-4, 3.3e-4, 1e-3, 3e-3, 9e-3)
    assert "tune" not in config  # to repeat the run is to take the rate that was found
    trials = sorted(path.name for path in (tmp_path / "run-tune").iterdir())
    assert len(trials) == 5  # the best two are not trained again for as many epochs
    for trial in trials:
        folder = RunFolder(tmp_path / "run-tune" / trial)
        assert "test" not in folder.summary() and not folder.checkpoints.exists()
    monkeypatch.setattr(
        import_module("attention_transfer.training.train"), "fit", lambda *_, **__: pytest.fail("trained again")
    )
    again = train("finetune", teacher=teacher, shots=1, recipe=recipe, tune="lr", out=str(out))
    assert again.summary == run.summary


def test_a_search_on_several_devices_is_refused(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tune searches on one device"):
        train("finetune", teacher=teacher, tune="lr", devices=2, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
