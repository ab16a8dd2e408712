"""Runs of earlier versions go on, or are refused in a sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from attention_transfer import Distill, Recipe, Run, UserError, train
from attention_transfer.config.base import rule_as_data
from attention_transfer.engine.loop import Loop
from attention_transfer.errors import Interrupted
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


def test_an_unfinished_run_of_an_earlier_version_is_not_lost(run: Path, go_on: Callable[..., Run]) -> None:
    """Its checkpoints are those of another engine."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"best\.ckpt was written by an earlier version.*finish the run with that"):
        go_on()
    assert {path: path.read_bytes() for path in before} == before


def test_an_unfinished_run_that_lacks_settings_of_today_goes_on(
    run: Path, go_on: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go_on(out="whole")

    def stop_after(loop: Loop) -> bool:
        if loop.epoch == 2:
            raise Interrupted
        return False

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Loop, "_stops_early", stop_after)
        go_on(out="begun")
    begun = run.parent / "begun"
    config = read_mapping(begun / "config.yaml")
    for name in ("pool", "strict", "strategy"):
        del config[name]
    del config["recipe"]["share_drop_path"]
    del config["rules"][0]["init_args"]["average"]
    (begun / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"pool is None there and 'avg' here"):  # its default, and not anything
        go_on(out="begun", pool="avg")
    before = read_metrics(begun / "metrics.jsonl")
    assert len(before) == 2
    summary = go_on(out="begun").summary
    assert read_metrics(begun / "metrics.jsonl")[:2] == before
    assert {**summary, "train": None} == {**whole.summary, "train": None}
    assert go_on(out="begun").summary == summary


def test_a_run_whose_weights_had_another_meaning_is_not_gone_on_with(run: Path) -> None:
    """Losses were sums over layers, and are means since: the rest of the run would have another loss."""
    config = read_mapping(run / "config.yaml")
    config["rules"] = [rule_as_data(Distill(weight=1.0))]
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"preset": "distill"}))
    with pytest.raises(UserError, match=r"an earlier version began the run .* finish it with that version"):
        train("distill", teacher="teacher", shots=2, recipe=RECIPE, rules=[Distill(weight=1.0)], loggers=[], out="run")
