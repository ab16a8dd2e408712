"""A rule of someone else's: one file, registered by an entry point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from attention_transfer.training import read_metrics

SOURCE = '''
"""A rule on attention maps."""

from dataclasses import dataclass

from attention_transfer import LossRule, Preset


@dataclass(frozen=True, kw_only=True)
class Nearby(LossRule):
    """The squared distance of attention maps.

    Attributes:
        power: of the distance.
    """

    power: float = 2.0

    def layer_loss(self, student, teacher):
        return (student.maps() - teacher.maps()).abs().pow(self.power).mean()


METHOD = Preset("random weights, attends near to where the teacher does", init="random", rules=(Nearby(),))
'''


def test_it_is_found_trains_and_is_repeated(teacher: str, tmp_path: Path, warm_package: Callable[..., Any]) -> None:
    run = warm_package("nearby", SOURCE, rules="Nearby = nearby:Nearby", presets="near = nearby:METHOD")
    assert "near            random weights, attends near to where the teacher does" in run("presets").stdout
    assert "Nearby" in " ".join(run("train", "--help").stdout.split())
    assert "--rules.power FLOAT" in run("train", "--rules.help", "Nearby").stdout
    wrong = run("train", "--rules+=Nearbi").stderr
    assert wrong == "error: there is no rule 'Nearbi'; did you mean 'Nearby'?\n"
    shared = ["--teacher", teacher, "--shots=1", "--recipe.batch-size=10", "--epochs=2", "--recipe.workers=0"]
    done = run("train", "--preset=near", *shared, "--rules+=Nearby", "--rules.power=1", "--out=first")
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text())
    assert [(rule["class_path"], rule["init_args"]["power"]) for rule in config["rules"]] == [("nearby.Nearby", 1.0)]
    again = run("train", "--config=first/config.yaml", "--out=second")
    assert again.returncode == 0, again.stderr
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("first", "second")]
    timeless = [[{k: v for k, v in row.items() if not k.startswith("time/")} for row in each] for each in rows]
    assert timeless[0] == timeless[1]
    assert all(row["train/nearby"] > 0 for row in rows[0])
