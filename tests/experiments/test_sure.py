"""Which seeds --until-sure adds, and when it stops."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from attention_transfer.config.training import Compare
from attention_transfer.experiments.findings import Decided, findings
from attention_transfer.experiments.grid import Cell, grid_of
from attention_transfer.experiments.report import write_report
from attention_transfer.experiments.results import markdown
from attention_transfer.experiments.rows import Row
from attention_transfer.experiments.sure import DECISIONS, Sure, say, sure_problems

NOISE = (0.01, -0.02, 0.015, -0.005, 0.02, -0.012, 0.004, -0.018, 0.011, 0.003, -0.009, 0.017)


def asked(**changes: object) -> Compare:
    return Compare(**{"presets": "finetune,gta,copy", "seeds": "3", "shots": "5", "until_sure": True, **changes})  # type: ignore[arg-type]


def row(cell: Cell, accuracy: float) -> Row:
    return Row(cell.preset, cell.labels.title, cell.seed, 50, accuracy, 1.0, 0.1, 0.5, 3, 10, 60.0, "x")


def run_all(config: Compare, accuracy: Callable[[Cell], float]) -> tuple[Sure, list[Row], list[list[Cell]]]:
    """Rounds as the verb has them."""
    grid = grid_of(config)
    sure, rounds = Sure(config, grid), [list(grid)]
    rows = [row(cell, accuracy(cell)) for cell in grid]
    while more := sure.more(rows):
        rounds.append(more)
        rows += [row(cell, accuracy(cell)) for cell in more]
    return sure, rows, rounds


def known(sure: Sure, rows: Sequence[Row]) -> Decided:
    decided = sure.decided(rows)
    assert decided is not None
    return decided


def seeds_of(rows: Sequence[Row], preset: str) -> list[int]:
    return [r.seed for r in rows if r.preset == preset]


def test_six_seeds_of_all_come_first_and_what_is_decided_gets_no_more() -> None:
    gain = {"finetune": 0.0, "gta": 0.2, "copy": 0.0}

    def accuracy(cell: Cell) -> float:
        own = {"finetune": 0, "gta": 3, "copy": 5}[cell.preset]
        return 0.5 + gain[cell.preset] + NOISE[(cell.seed + own) % len(NOISE)] / 2

    sure, rows, rounds = run_all(asked(max_seeds=9), accuracy)
    assert [cell.seed for cell in rounds[1]] == [seed for seed in (4, 5, 6, 7, 8) for _ in range(3)]
    assert [[(c.preset, c.seed) for c in cells] for cells in rounds[2:]] == [
        [("finetune", seed), ("copy", seed)] for seed in (9, 10, 11)
    ]
    found = known(sure, rows).decisions["5 labels a class"]
    assert (found["gta"].verdict, found["gta"].seeds) == ("better", 6)
    assert (found["copy"].verdict, found["copy"].seeds) == ("undecided", 9)


def test_a_command_that_is_given_again_adds_the_same_seeds() -> None:
    config = asked(max_seeds=8)
    _, rows, rounds = run_all(config, lambda cell: 0.5 + NOISE[(cell.seed * (1 + len(cell.preset))) % 12])
    again = Sure(config, grid_of(config))
    assert again.more([r for r in rows if r.seed == 3]) == rounds[1]
    assert again.more([r for r in rows if r.seed <= 8]) == rounds[2]


def test_each_amount_of_labels_is_a_question_of_its_own() -> None:
    def accuracy(cell: Cell) -> float:
        clear = 0.3 if (cell.labels.shots, cell.preset) == (5, "gta") else 0.0
        return 0.5 + clear + NOISE[(cell.seed + len(cell.preset)) % 12] / 2

    _, rows, _ = run_all(asked(presets="finetune,gta", shots="5,10", max_seeds=7), accuracy)
    counts = {title: len({r.seed for r in rows if r.labels == title}) for title in {r.labels for r in rows}}
    assert counts == {"5 labels a class": 6, "10 labels a class": 7}


def test_no_seed_is_begun_that_would_end_after_the_budget(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "attention_transfer"):
        _, _, rounds = run_all(asked(minutes=14.0), lambda cell: 0.5)
    assert len(rounds) == 1  # 15 runs of a minute are needed
    assert "14 minutes are over" in caplog.text
    _, _, rounds = run_all(asked(minutes=16.0, max_seeds=6), lambda cell: 0.5)
    assert len(rounds) == 2


def test_decisions_are_said_and_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sure, rows, _ = run_all(
        asked(presets="finetune,gta", max_seeds=6), lambda c: 0.5 + NOISE[(c.seed + len(c.preset)) % 12]
    )
    with caplog.at_level(logging.INFO, "attention_transfer"):
        say(rows, known(sure, rows), None, tmp_path)
    assert "undecided between gta and finetune" in caplog.text
    with (tmp_path / DECISIONS).open() as file:
        (found,) = csv.DictReader(file)
    assert (found["method"], found["reference"], found["verdict"], found["seeds"]) == (
        "gta",
        "finetune",
        "undecided",
        "6",
    )
    assert float(found["low"]) < float(found["difference"]) < float(found["high"])
    assert f"about {found['more']} more seeds" in caplog.text
    assert f"which take {2 * int(found['more']):.1f} minutes" in caplog.text
    assert float(found["minutes"]) == 2 * int(found["more"])


def test_log_page_markdown_and_csv_have_one_verdict_which_is_the_sequential_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Gains with which six fixed seeds are enough at the end of ten, and the looks after every seed are not."""
    gains = (0.02, -0.01, 0.022, 0.03, -0.012, 0.025, 0.018, 0.005, 0.024, -0.002)

    def accuracy(cell: Cell) -> float:
        return {"gta": 0.5, "finetune": 0.5 + gains[cell.seed], "copy": 0.2}[cell.preset] + NOISE[cell.seed]

    sure, rows, _ = run_all(asked(presets="gta,finetune,copy", seeds="0", max_seeds=10), accuracy)
    decided = known(sure, rows)
    (fixed,), (finding,) = findings(rows), findings(rows, None, decided)
    assert fixed.reference == "finetune"
    assert fixed.differences["gta"].verdict == "worse"  # as if nobody had looked before the tenth seed
    assert finding.reference == "gta"
    assert {name: one.verdict for name, one in finding.differences.items()} == {
        "finetune": "undecided",
        "copy": "worse",
    }
    assert finding.leaders == ["finetune", "gta"]  # finetune is not above gta for sure
    one = finding.differences["finetune"]
    said = f"undecided between finetune and gta: +1.2 points ({100 * one.interval.low:.1f} to ".replace("-", "−")
    further = f"about {one.more} more seeds would decide, which take {2 * (one.more or 0):.1f} minutes on one worker"
    with caplog.at_level(logging.INFO, "attention_transfer"):
        say(rows, decided, None, tmp_path)
    page = write_report(tmp_path, rows, [], teacher="vit", teacher_looks=None, decided=decided).read_text()
    for text in (caplog.text, page, markdown(rows, decided=decided)):
        assert said in text
        assert f"undecided: finetune ({further})" in text
        assert "p = " not in text
    for text in (page, markdown(rows, decided=decided)):
        assert "Seeds were added until it was sure, up to 10 of each method" in text
        assert "always valid" in text
    assert "p, adjusted" not in page
    held = write_report(tmp_path, rows, [], teacher="vit", teacher_looks=None, decided=decided, margin=0.01).read_text()
    assert "decide nothing.\nA difference whose interval is within ±1 points counts as none.\nNumbers of" in held
    assert "Seeds were added" not in markdown(rows)
    with (tmp_path / DECISIONS).open() as file:
        assert [(line["method"], line["verdict"]) for line in csv.DictReader(file)] == [
            ("finetune", "undecided"),
            ("copy", "worse"),
        ]


def test_a_look_takes_each_seed_whole() -> None:
    """Tables are renewed while runs end in any order."""
    config = asked(presets="finetune,gta", seeds="0,1,2,3,4,5,6", max_seeds=8)
    grid = grid_of(config)
    rows = [row(cell, 0.5 + 0.1 * (cell.preset == "gta") + NOISE[cell.seed]) for cell in grid]
    late = [one for one in rows if (one.preset, one.seed) != ("gta", 2)]
    assert known(Sure(config, grid), rows).decisions["5 labels a class"]["gta"].verdict == "better"
    found = known(Sure(config, grid), late).decisions["5 labels a class"]["gta"]
    assert (found.verdict, found.seeds) == ("undecided", 2)
    assert known(Sure(config, grid), [one for one in rows if one.preset == "gta"]).decisions == {"5 labels a class": {}}
    assert Sure(asked(until_sure=False), grid).decided(rows) is None


def test_what_cannot_be_asked_is_refused() -> None:
    def problems(config: Compare) -> list[str]:
        return sure_problems(config, grid_of(config))

    assert problems(asked()) == []
    assert problems(asked(presets="gta")) == ["until_sure holds methods against the first one, but gta is the only one"]
    assert problems(asked(max_seeds=5)) == ["max_seeds is 5; give 6 to 50: fewer than six seeds can't decide"]
    assert problems(asked(seeds="0,1,2,3,4,5,6", max_seeds=6)) == [
        "seeds names 7, and max_seeds is 6; name fewer, or raise max_seeds"
    ]
    assert asked(until_sure=False, minutes=3.0, workers=0).problems() == [
        "workers is 0; give 1 or more",
        "minutes is the budget of until_sure; add --until-sure, or leave it out",
    ]
