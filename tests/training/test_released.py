"""Runs of earlier versions go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from attention_transfer import Distill, Recipe, Run, UserError, train
from attention_transfer.config.base import rule_as_data
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.training import read_metrics

RELEASED = Path(__file__).parent / "released"
RECIPE = Recipe(epochs=4, batch_size=10, validate_every=1, lr=3e-3, workers=0)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of an unfinished run of 0.1, and of its teacher, in the current folder."""
    for name in ("run", "teacher"):
        shutil.copytree(RELEASED / "0.1" / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


@pytest.fixture
def go_on(run: Path) -> Callable[..., Run]:
    """Gives the command that began it."""

    def give(**changed: Any) -> Run:
        settings: dict[str, Any] = {"recipe": RECIPE, "loggers": [], "device": "cpu", "out": "run", **changed}
        return train("copy", teacher="teacher", shots=2, **settings)

    return give


def test_an_unfinished_run_that_lacks_settings_of_today_ends_as_its_own_version_would_have(
    run: Path, go_on: Callable[..., Run]
) -> None:
    config = read_mapping(run / "config.yaml")
    for name in ("pool", "strict", "strategy"):
        del config[name]
    del config["recipe"]["share_drop_path"]
    del config["rules"][0]["init_args"]["average"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"pool is None there and 'avg' here"):  # its default, and not anything
        go_on(pool="avg")
    before = read_metrics(run / "metrics.jsonl")
    summary = go_on().summary
    assert read_metrics(run / "metrics.jsonl")[:2] == before
    expected = json.loads((RELEASED / "0.1" / "summary-of-the-whole-run.json").read_text())
    assert summary["train"]["steps"] == expected["train"]["steps"]
    assert summary["best_epoch"] == expected["best_epoch"]
    assert summary["test"] == pytest.approx(expected["test"], rel=1e-3)  # other machines round otherwise
    assert (run / "run.json").is_file()
    assert go_on().summary == summary


def test_a_run_whose_weights_had_another_meaning_is_not_gone_on_with(run: Path) -> None:
    """Losses were sums over layers, and are means since: the rest of the run would have another loss."""
    config = read_mapping(run / "config.yaml")
    config["rules"] = [rule_as_data(Distill(weight=1.0))]
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"preset": "distill"}))
    with pytest.raises(UserError, match=r"an earlier version began the run .* finish it with that version"):
        train("distill", teacher="teacher", shots=2, recipe=RECIPE, rules=[Distill(weight=1.0)], loggers=[], out="run")


def test_checkpoints_without_rows_need_the_file_that_has_them(run: Path, go_on: Callable[..., Run]) -> None:
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl has lost epoch 1; restore it"):
        go_on()
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 1
