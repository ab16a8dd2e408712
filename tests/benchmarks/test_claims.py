"""The claims: effects, intervals and verdicts, from rows whose answer is known."""

from __future__ import annotations

import csv
import itertools
import runpy
from pathlib import Path

import numpy as np
import pytest

MODULE = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "claims.py"))


def rows(folder: Path, gains: dict[str, list[float]]) -> Path:
    """results.csv in which a method has 50 % and so many points more, by seed."""
    folder.mkdir()
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["preset", "labels", "seed", "test_accuracy"])
        for name, values in gains.items():
            writer.writerows([name, "5 labels", i, 0.5 + gain / 100] for i, gain in enumerate(values))
    return folder


def sign_flip(values: list[float]) -> float:
    """Exact, two-sided, by hand."""
    own = abs(np.mean(values))
    flips = [abs(np.mean(np.multiply(values, signs))) for signs in itertools.product((-1, 1), repeat=len(values))]
    return float(np.mean([flip >= own - 1e-12 for flip in flips]))


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([3.0, 4.0, 2.5, 3.5, 5.0, 3.0], "holds"),
        ([-3.0, -4.0, -2.5, -3.5, -5.0, -3.0], "does not hold"),
        ([3.0, -4.0, 2.5, -3.5, 5.0, -3.0], "undecided"),
        ([3.0, 4.0, 2.5, 3.5, 5.0], "undecided"),  # five seeds can't go below 0.0625
        ([0.0] * 6, "undecided"),
    ],
)
def test_a_claim_holds_where_interval_and_test_agree(gains: list[float], verdict: str) -> None:
    found = MODULE["judged_of"](np.array(gains))
    assert found.p == pytest.approx(sign_flip(gains), abs=1e-9)
    assert found.interval.mean == pytest.approx(np.mean(gains))
    assert MODULE["VERDICTS"][found.verdict] == verdict


def test_a_page_has_each_claim_that_the_rows_speak_of_and_where_the_networks_look(tmp_path: Path) -> None:
    none = [0.0] * 6
    folder = rows(
        tmp_path / "scenes-5-labels", {"finetune": none, "gta": [3.0, 4.0, 2.5, 3.5, 5.0, 3.0], "scratch": [-20.0] * 6}
    )
    names = "attention_iou,iou_low,iou_high,attention_share,share_low,share_high"
    (folder / "teacher.csv").write_text(f"{names}\n0.3,0.28,0.34,0.5,0.4,0.6\n")
    seen = [f"5 labels,{name},{i},0.2{i % 2},0.16,0.22,0.4,0.3,0.5" for name in ("finetune", "gta") for i in range(6)]
    (folder / "attention.csv").write_text("\n".join([f"labels,preset,seed,{names}", *seen, ""]))
    page = MODULE["page"](folder)
    assert page.startswith("## 5 labels a class\n")
    assert "| GTA is more accurate than fine-tuning | Seo et al. 2024 | +3.5 (" in page
    assert "| 0.031 | 6 | **holds** |" in page
    assert "(IoU of the teacher less that of the fine-tuned) | Seo et al. 2024 | +9.5 (" in page
    assert "distilled" not in page
    assert "| `finetune` | 50.0 | 20.5 ± 0.6 | 3.0 | 40.0 | 6 |" in page
    assert "| the teacher, as it is | – | 30.0 | 3.0 | 50.0 | – |" in page


def test_what_else_is_varied_is_a_part_of_the_methods_name(tmp_path: Path) -> None:
    folder = tmp_path / "fashion-layerscale"
    folder.mkdir()
    lines = ["preset,labels,seed,test_accuracy"]
    for network, gain in (("vit_standard", 0.0), ("vit_layerscale", 0.1)):
        labels = f'"10 labels a class, student timm/local-dir:{network}"'
        lines += [f"copy,{labels},{seed},{0.5 + gain + seed / 1000}" for seed in range(6)]
    (folder / "results.csv").write_text("\n".join([*lines, ""]))
    page = MODULE["page"](folder)
    assert "copies it better than a standard one | Qin et al. 2026 | +10.0 (+10.0 to +10.0) | 0.031" in page
    assert "| `copy, vit_layerscale` | 60.2 ± 0.2 | 6 |" in page
    assert "random weights" not in page


def test_the_page_of_the_docs_is_what_the_committed_rows_say() -> None:
    home = Path(__file__).parents[2]
    results = home / "benchmarks" / "results" / "claims-2026-11-27"
    page = "\n\n".join(MODULE["page"](results / name) for name in MODULE["TITLES"])
    assert {path.parent.name for path in results.glob("*/results.csv")} == set(MODULE["TITLES"])
    assert page in (home / "docs" / "claims.md").read_text()


def test_the_gap_is_halved_and_an_ensemble_beats_the_better_of_its_members(tmp_path: Path) -> None:
    runs = MODULE["read"](
        rows(tmp_path / "c", {"scratch": [0.0] * 6, "finetune": [20.0] * 6, "copy": [13.0] * 6, "distill": [25.0] * 6})
    )["5 labels"]
    runs["distill + finetune"] = {seed: {"test_accuracy": 76.0} for seed in range(6)}
    effects = {claim.text: MODULE["differences"](claim, runs) for claim in MODULE["CLAIMS"]}
    by_start = {text.split(" (")[0]: values for text, values in effects.items() if len(values)}
    assert by_start["copied attention recovers most of what pre-training is worth"] == pytest.approx(3.0)
    assert by_start["an ensemble of the distilled student and the fine-tuned teacher beats both"] == pytest.approx(1.0)
