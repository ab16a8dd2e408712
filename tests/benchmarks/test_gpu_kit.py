"""The kit for a card, rehearsed on the CPU: every stage's own code at tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from attention_transfer.attention import Impl, choose_impl
from attention_transfer.errors import UserError
from tests.warm import Python

Played = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[2]
KIT = ROOT / "benchmarks" / "gpu"
STAGES = ("a-right", "b-steps", "c-kernels", "d-training", "e-precision")


def serves(route: Any) -> bool:
    """Whether a rehearsal can run a route: what runs on the CPU, and Triton in its interpreter."""
    q = torch.zeros(1, 1, 2, 16)
    try:
        choose_impl("distilled_attention", q, q, v_s=q, impl=route)
    except UserError:
        return bool(route == "triton")
    return True


SERVED = {route for route in get_args(Impl) if route != "auto" and serves(route)}


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHON": sys.executable, "WHEELS": "none", **environment}
    return subprocess.run(
        ["bash", KIT / "run.sh", *options], env=variables, capture_output=True, text=True, check=False
    )


@pytest.fixture
def played(python: Python) -> Played:
    """Runs code of the kit."""
    return lambda code, *words: python("-c", code, *words, cwd=ROOT)


@pytest.mark.long
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_every_stage_comes_to_its_end_with_all_its_rows(tmp_path: Path) -> None:
    done = run("--rehearse", OUT=str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert len(done.stdout.encode()) < 200_000
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"log.txt", *(f"{stage}.json" for stage in STAGES)}  # 8 at most come back from such a machine
    found = {stage: json.loads((tmp_path / "out" / f"{stage}.json").read_text()) for stage in STAGES}
    for content in found.values():
        assert content["finished"] and content["rehearsed"] and content["versions"]["torch"] == torch.__version__
        assert not [row for row in content["rows"] if "failed" in row or row.get("ok") is False]
        assert len(content["commit"]) >= 7 and content["date"]

    right, steps, kernels, training, precision = (content["rows"] for content in found.values())
    assert all(row["error"] <= row["limit"] for row in right if "error" in row)
    unusable = "Triton's interpreter doesn't run" in done.stdout  # some of its releases don't know the newest NumPy
    served = SERVED - {"triton"} if unusable else SERVED
    assert {row["route"] for row in right if row.get("ok") and "mask" in row} == served
    cases = {row["case"] for row in right if row.get("ok")}
    for route in served:
        assert {f"step of distill-{route}", f"memory checker on {route}"} < cases
    assert {"step of copy", "step of gta"} < cases

    plain = {row["method"]: row for row in steps if not row["compiled"]}
    assert set(plain) >= {f"distill-{route}" for route in served} | {"copy", "gta", "materialised", "finetune", "floor"}
    assert all(plain[f"distill-{route}"]["ratio"] > 0 for route in served)
    assert {row["method"] for row in steps if row["compiled"] and row.get("ratio", 0) > 0} >= {"copy", "gta"}

    timed = [row for row in kernels if "forward_ms" in row]
    assert {row["way"] for row in timed} == {"maps", "attention alone", *served}
    assert all(row["forward_gain"] > 0 and row["backward_limit"] > 0 for row in timed)

    assert {row["images"] for row in training if "data_wait" in row} == {"digits, in memory", "JPEGs"}
    assert {row["method"] for row in training if row["batch_size"] == 8 and "memory" in row} >= {
        "floor",
        "materialised",
    }

    survived = {"out of memory", "two processes (gloo)", "killed and resumed"}
    assert {row["case"] for row in precision if row.get("ok")} == survived | {
        f"train in {name}" for name in ("float32", "TF32", "bfloat16")
    }
    assert [row["left_out"] for row in precision if "left_out" in row] == [
        "recipe.precision fp16 needs a GPU, and this runs on the CPU; choose bf16 or fp32"
    ]
    assert "== right: finished" in done.stdout and " 0 wrong" in done.stdout


BROKEN = """
import sys
from attention_transfer.attention import triton_programs
triton_programs._LN_2 = triton_programs.tl.constexpr(0.7)  # ln 2 is 0.693: every cross-entropy is 1 % too large
from benchmarks.gpu import right, stage
right.SMALL = right.SMALL[:1]
stage.main()
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_a_wrong_kernel_is_told_by_stage_a(tmp_path: Path) -> None:
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BROKEN, "right", "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # the stage came to its end; the summary says that it is wrong
    rows = json.loads((tmp_path / "a-right.json").read_text())["rows"]
    if any("interpreter doesn't run" in row.get("left_out", "") for row in rows):
        pytest.skip("Triton's interpreter doesn't run here")
    wrong = {row["route"] for row in rows if row.get("ok") is False and "mask" in row}
    assert wrong == {"triton"}
    summary = subprocess.run(
        [sys.executable, KIT / "summary.py", tmp_path], capture_output=True, text=True, check=False
    )
    assert summary.returncode == 1
    assert "triton" in summary.stdout and "right: finished" in summary.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--only", "z"), "there is no stage z; choose from a (right) b (steps)"),
        (("--minutes", "ten"), "--minutes is ten; give a number"),
        (("--minutes",), "--minutes needs a value"),
        (("--fast",), "there is no option --fast"),
        (("--out", "/proc/kit"), "/proc/kit can't be written to"),
        (("--release", "/nowhere"), "there is no folder /nowhere"),
    ],
)
def test_a_wrong_option_is_one_sentence(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = run(*options, OUT=str(tmp_path))
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_stages_that_do_not_fit_the_minutes_are_left_out_from_the_end(tmp_path: Path) -> None:
    done = run("--minutes", "0.1", OUT=str(tmp_path))
    said = [line for line in done.stdout.splitlines() if "left out" in line]
    assert len(said) == len(STAGES) and "stage a, right, needs up to 105 s" in said[0]


REFUSED = """
import sys
from pathlib import Path
import torch
from attention_transfer.errors import UserError
from benchmarks.gpu import card, stage, training

def said(call):
    try:
        call()
    except UserError as error:
        return str(error)

if not torch.cuda.is_available():
    print(said(lambda: card.find(rehearse=False)))
print(said(lambda: training.check_release(Path(sys.argv[1]))))
(Path(sys.argv[1]) / "models_dual_vit.py").write_text("other code")
print(said(lambda: training.check_release(Path(sys.argv[1]))))
stage.requires = lambda _: ["torch>=99", "no-such-package>=1", "only-for-docs; extra == 'docs'"]
print(stage.unmet())
"""


def test_what_is_not_there_is_named(tmp_path: Path, played: Played) -> None:
    done = played(REFUSED, str(tmp_path))
    *no_card, no_clone, other, unmet = done.stdout.splitlines()
    assert all("there is no CUDA device" in line for line in no_card)
    assert "is no clone of github.com/alexlioralexli/attention-transfer" in no_clone
    assert "is a clone of another commit; check out 26963e8" in other
    assert f"torch>=99 is needed, and {version('torch')} is installed" in unmet
    assert "no-such-package>=1 is missing" in unmet and "docs" not in unmet


REPORTS = """
import sys
from pathlib import Path
import torch
from attention_transfer.errors import UserError
from benchmarks.gpu import card
from benchmarks.gpu.report import Report

def give(error):
    def compute():
        raise error
    return compute

report = Report(Path(sys.argv[1]), "right", card.find(rehearse=True), 100)
report.row({"case": 1}, lambda: {"error": float("nan"), "ok": False})
report.row({"case": 2}, give(torch.OutOfMemoryError("CUDA out of memory")))
report.row({"case": 3}, give(UserError("it can't serve")))
report.row({"case": 4}, give(ValueError("surprise")))
report._limit = 0
report.row({"case": 5}, lambda: {"ok": True})
report._limit = 100
report.row({"case": 6}, give(RuntimeError("CUDA error: an illegal memory access was encountered")))
"""


def test_a_row_that_can_not_be_measured_says_why_and_a_lost_card_ends_the_stage(tmp_path: Path, played: Played) -> None:
    done = played(REPORTS, str(tmp_path / "a.json"))
    assert done.returncode == 1 and "illegal memory access" in done.stderr.splitlines()[-1]
    content: dict[str, Any] = json.loads((tmp_path / "a.json").read_text())
    assert content["finished"] is False  # and yet all rows are there
    assert all(row.pop("at_s") >= 0 for row in content["rows"])
    assert content["rows"] == [
        {"case": 1, "error": None, "ok": False},
        {"case": 2, "left_out": "out of memory"},
        {"case": 3, "left_out": "it can't serve"},
        {"case": 4, "failed": "ValueError: surprise"},
        {"case": 5, "left_out": "the stage's time was up"},
        {"case": 6, "failed": "RuntimeError: CUDA error: an illegal memory access was encountered"},
    ]
