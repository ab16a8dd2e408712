"""What --until-sure saves, from rows whose answer is known."""

from __future__ import annotations

import runpy
from pathlib import Path

from attention_transfer.experiments.rows import Row

MODULE = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "until_sure.py"))
NOISE = (0.01, -0.02, 0.015, -0.005, 0.02, -0.012, 0.004, -0.018, 0.011, 0.003)


def rows() -> list[Row]:
    """Fine-tuning and GTA differ by noise, scratch is far behind."""
    values = {"finetune": 0.9, "gta": 0.9, "scratch": 0.4}
    return [
        Row(name, "5 labels a class", seed, 50, mean + NOISE[(seed * (1 + i)) % 10], 1.0, 0.1, 0.5, 3, 10, 2.0, name)
        for i, (name, mean) in enumerate(values.items())
        for seed in range(10)
    ]


def test_a_clear_difference_takes_six_seeds_and_none_takes_all() -> None:
    clear = MODULE["asked"](rows(), ("finetune", "scratch"))
    assert (clear.fixed, clear.until_sure, clear.seeds) == ({"scratch": "worse"}, {"scratch": "worse"}, {"scratch": 6})
    assert (clear.runs, clear.saved) == (12, 8)
    none = MODULE["asked"](rows(), ("finetune", "gta"))
    assert none.fixed == none.until_sure == {"gta": "undecided"}
    assert none.saved == 0


def test_the_methods_that_are_decided_are_not_run_on_and_the_table_sums_up(tmp_path: Path) -> None:
    whole = MODULE["asked"](rows(), ("finetune", "gta", "scratch"))
    assert whole.seeds == {"gta": 10, "scratch": 6}
    assert whole.saved == 4
    text = MODULE["table"](rows())
    assert "| scratch against finetune | worse | worse | 6 | 8 of 20 |" in text
    assert "| all against finetune | undecided, worse | undecided, worse | 10, 6 | 4 of 30 |" in text
    assert "20 of 90 runs are saved (22%). Of 5 verdicts 5 are equal, 0 opposite" in text
