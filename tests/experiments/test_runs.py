"""The verb `runs`: which runs are found, and in what two differ."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from attention_transfer import UserError, cli, runs
from attention_transfer.experiments import RunDifference, RunRecord


def made(folder: Path, *, accuracy: float | None = 0.5, weight: float = 1.0, **config: Any) -> str:
    """A folder as `train` leaves it, as far as it is read here."""
    folder.mkdir(parents=True)
    rule = {"class_path": "attention_transfer.Guide", "init_args": {"weight": weight}}
    settings = {"preset": "gta", "data": "digits", "teacher": None, "seed": 0, "shots": 5, "fraction": 1.0}
    whole = {**settings, "rules": [rule], "recipe": {"lr": 0.001}, "out": str(folder), **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))
    (folder / "run.json").write_text('{"kind": "attention-transfer run", "format": 1}')
    (folder / "environment.json").write_text(json.dumps({"device": "cpu", "command": [str(folder)]}))
    if accuracy is not None:
        scores = {"images": 9, "accuracy": accuracy, "cross_entropy": 1.0, "calibration_error": 0.1}
        done = {"preset": whole["preset"], "seed": whole["seed"], "best_epoch": 2, "validation": scores, "test": scores}
        (folder / "summary.json").write_text(json.dumps({**done, "train": {"images": 50, "steps": 20, "seconds": 3.0}}))
    return str(folder)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made(tmp_path / "c" / "runs" / "gta", accuracy=0.75)
    made(tmp_path / "c" / "runs" / "gta" / "inside")  # what is in a run is the run's own
    made(tmp_path / "c" / "runs" / "scratch", preset="scratch", seed=1, shots=None, fraction=0.15)
    made(tmp_path / "b", accuracy=None, data="elsewhere")
    made(tmp_path / ".hidden")
    return tmp_path


def listed(*folders: Path, **filters: Any) -> list[RunRecord]:
    found = runs([*map(str, folders)], **filters)
    assert isinstance(found, list)
    return found


def test_runs_are_found_at_any_depth_with_what_they_have(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished, gta, scratch = listed(place)
    assert Path(gta.run) == place / "c" / "runs" / "gta"
    assert (gta.method, gta.labels, gta.state, gta.test_accuracy) == ("gta", "5 labels a class", "finished", 0.75)
    assert (scratch.labels, scratch.seed) == ("15 % of the labels", 1)
    assert (unfinished.state, unfinished.test_accuracy, unfinished.seconds) == ("unfinished", None, None)
    shown = capsys.readouterr().err
    assert "75.0" in shown
    assert [line.count("–") for line in shown.splitlines() if "unfinished" in line] == [3]  # what is not known is no 0


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({"preset": "scratch"}, ["scratch"]),
        ({"preset": "gta, scratch", "state": "finished"}, ["gta", "scratch"]),
        ({"seed": 1}, ["scratch"]),
        ({"data": "elsewhere"}, ["b"]),
        ({"state": "unfinished"}, ["b"]),
        ({"state": "damaged"}, []),
    ],
)
def test_filters_choose(place: Path, filters: dict[str, Any], names: list[str]) -> None:
    assert [Path(record.run).name for record in listed(place, **filters)] == names


def test_a_damaged_run_is_named_and_the_others_are_listed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "c" / "runs" / "scratch" / "summary.json").write_text("{}")
    states = {Path(record.run).name: record.state for record in listed(place)}
    assert states == {"b": "unfinished", "gta": "finished", "scratch": "damaged"}
    assert "is not the summary of a run" in capsys.readouterr().err


def test_the_list_is_written_as_a_table(place: Path, tmp_path: Path) -> None:
    listed(place, out=str(tmp_path / "runs.csv"))
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["test_accuracy"] for row in rows] == ["", "0.75", "0.5"]
    with pytest.raises(UserError, match=r"runs\.csv"):
        listed(place, out=str(tmp_path / "runs.csv"))


def test_two_runs_differ_in_settings_and_results(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(place / "c" / "runs" / "gta"), made(place / "d", accuracy=0.5, weight=0.1, recipe={"lr": 0.01})
    cli.run(["runs", "diff", a, b, "--out", str(place / "diff.json")])
    found = runs(["diff", a, b])
    assert isinstance(found, RunDifference)
    assert found.settings == {"rules.Guide.weight": (1.0, 0.1), "recipe.lr": (0.001, 0.01)}
    assert found.environment == {}
    assert found.results["test.accuracy"] == (0.75, 0.5)
    assert json.loads((place / "diff.json").read_text())["results"]["test.accuracy"] == [0.75, 0.5]
    assert "-0.25" in capsys.readouterr().err


def test_an_unfinished_run_has_no_results_to_compare(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = runs(["diff", str(place / "b"), str(place / "c" / "runs" / "gta")])
    assert isinstance(found, RunDifference)
    assert found.results["test.accuracy"] == (None, 0.75)
    assert "A is not finished, so it has no results yet" in capsys.readouterr().err


def test_wrong_input_is_said_in_a_sentence(place: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        listed(place / "nowhere")
    with pytest.raises(UserError, match="diff takes two runs, and 1 are named"):
        runs(["diff", str(place)])
    with pytest.raises(UserError, match="is no run; name the folder of one"):
        runs(["diff", str(place), str(place / "b")])
    with pytest.raises(UserError, match="preset can't choose among two runs"):
        runs(["diff", "a", "b"], preset="gta")
    with pytest.raises(UserError, match="state is 'done'"):
        runs([str(place)], state="done")  # type: ignore[arg-type] # as a user may write it
