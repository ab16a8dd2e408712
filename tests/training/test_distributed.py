"""Two processes on the CPU (gloo) make the steps, and give the numbers, of one."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_transfer import load_run
from attention_transfer.training import read_metrics
from tests.warm import Python

# 17 images: the last batch of an epoch has one image, of which the second process gets none. Validation and test have
# odd numbers. float64, because sums in another order differ less there.
TRAINING = """
import sys, timm, torch
from torch import nn
from torch.utils.data import TensorDataset
from attention_transfer import AttentionTransfer, Copy, Distill, Guide
from attention_transfer.training import ResolvedRecipe
from attention_transfer.training import RunFolder, Supervised, Training, fit

class Double(nn.Module):
    def forward(self, pixels):
        return pixels.double()

def vit(seed):
    torch.manual_seed(seed)
    sizes = dict(img_size=8, patch_size=4, in_chans=1, embed_dim=24, depth=2, num_heads=3, num_classes=5)
    return timm.create_model("vit_tiny_patch16_224", **sizes)

def images(number, seed):
    pixels = torch.randn(number, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(pixels, torch.arange(number) % 5)

METHODS = {"copy": ([Copy()], 1), "distill": ([Distill()], 2), "gta": ([Guide(weight=1)], 1)}
for name, (rules, accumulate) in METHODS.items():
    objective = Supervised(AttentionTransfer(vit(1), vit(2), rules)).double()
    recipe = ResolvedRecipe(epochs=3, batch_size=8, validate_every=1, accumulate=accumulate, balanced=name == "gta")
    with RunFolder.open(f"{sys.argv[1]}/{name}", {}, overwrite=False) as folder:
        splits = dict(train=images(17, 0), validation=images(11, 1), test=images(7, 2), classes=5)
        where = dict(folder=folder.path, device="cpu", loggers=["tensorboard"])
        fit(Training(objective=objective, recipe=recipe, prepare=Double(), **splits, **where))
"""


def history(run: Path) -> list[dict[str, float]]:
    rows = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def test_two_processes_make_the_steps_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_two_processes: Callable[..., Any]
) -> None:
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    for process in in_two_processes(str(script), str(tmp_path / "two")):
        assert process.returncode == 0, process.stderr[-4000:]
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "one")])
    runpy.run_path(str(script))
    for method in ("copy", "distill", "gta"):
        one, two = tmp_path / "one" / method, tmp_path / "two" / method
        assert len(history(one)) == 3
        for row, other in zip(history(one), history(two), strict=True):
            assert set(row) == set(other)
            assert other == pytest.approx(row, rel=1e-6), method
        weights = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, two)]
        for name, value in weights[0]["state_dict"].items():
            torch.testing.assert_close(weights[1]["state_dict"][name], value, rtol=0, atol=1e-9)
        assert {p.relative_to(two) for p in two.rglob("*") if "tfevents" not in p.name} == {
            p.relative_to(one) for p in one.rglob("*") if "tfevents" not in p.name
        }
        assert len(list((two / "tensorboard").glob("*tfevents*"))) == 1  # the first process writes, and no other


@pytest.mark.long
def test_torchrun_runs_a_verb_in_two_processes(teacher: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = f"train --preset copy --teacher {teacher} --shots 2 --recipe.epochs 2 --recipe.batch-size 8 --out {out}"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", "attention_transfer", *arguments.split(), "--overwrite", "--recipe.lr", "0.001"]
    done = subprocess.run([sys.executable, *torchrun, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    assert summary["train"]["steps"] == 6
    assert summary["test"]["images"] == 450
    assert load_run(out).spec.classes == 10
    assert (out / "log.txt").read_text().count("test accuracy") == 1
    assert "2 x cpu (no GPU is there; processes by torchrun)" in (out / "log.txt").read_text()
    last = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [name for name in last["state_dict"] if "teacher" in name]


@pytest.mark.slow
def test_a_command_starts_its_processes_itself(teacher: str, tmp_path: Path, python: Python) -> None:
    out = tmp_path / "run"
    words = f"train --preset copy --teacher {teacher} --shots 2 --recipe.epochs 2 --recipe.batch-size 8 --out {out}"
    done = python("-m", "attention_transfer", *words.split(), "--devices", "2", "--loggers", "[]")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "2 x cpu (no GPU is there)" in (out / "log.txt").read_text()
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    assert (summary["train"]["steps"], summary["test"]["images"]) == (6, 450)
    assert "Error" not in done.stderr
