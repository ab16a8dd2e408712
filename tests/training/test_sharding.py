"""Weights in shares (FSDP2): two processes give the numbers of one, whatever a run is taken up by."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from attention_transfer import L2SP, AttentionTransfer, UserError, load_run, train
from attention_transfer.engine.hardware import Hardware, choose_hardware
from attention_transfer.engine.samplers import EqualBatches
from attention_transfer.training import Recipe, ResolvedRecipe, Supervised, Training, fit, read_metrics
from tests.warm import Python

InTwo = Callable[..., list[CompletedProcess[str]]]

# 513 images to validate: one process would have two batches of them and the other one, which would wait for ever.
# Five classes and widths of 24: shares of unequal size. float64, because sums in another order differ less there.
# An objective counts its training steps, so that a run can be ended in the middle, and notes the shares of weights.
TRAINING = """
import os, sys, timm, torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset
from attention_transfer import AttentionTransfer, Copy, Distill, FeatureKD, Guide
from attention_transfer.training import ResolvedRecipe
from attention_transfer.training import RunFolder, Supervised, Training, fit

OUT, STRATEGY, DIES_AT, CHOSEN = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]

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

class Witness(Supervised):
    steps, shares = 0, set()
    def forward(self, images, targets):
        weight = self.vit.blocks[0].mlp.fc1.weight
        held = getattr(weight, "to_local", lambda: weight)()
        Witness.shares.add(held.numel() / weight.numel())
        if self.training:
            Witness.steps += 1
            if Witness.steps == DIES_AT:
                os._exit(7)
        return super().forward(images, targets)

METHODS = {
    "copy": ([Copy()], {}),
    "distill": ([Distill()], {"accumulate": 2}),
    "gta": ([Guide(weight=1)], {"balanced": True, "checkpoint_gradients": True}),
    "features": ([FeatureKD()], {"ema_decay": None, "clip_grad": None, "layer_decay": 0.7}),
}
for name in CHOSEN:
    rules, settings = METHODS[name]
    Witness.steps = 0
    objective = Witness(AttentionTransfer(vit(1), vit(2), rules)).double()
    recipe = ResolvedRecipe(epochs=4, batch_size=8, validate_every=2, **settings)
    with RunFolder.open(f"{OUT}/{name}", {}, overwrite=False) as folder:
        splits = dict(train=images(17, 0), validation=images(513, 1), test=images(7, 2), classes=5)
        where = dict(folder=folder.path, device="cpu", strategy=STRATEGY)
        fit(Training(objective=objective, recipe=recipe, prepare=Double(), **splits, **where))
    if DIES_AT == 0:
        assert Witness.shares == ({0.5} if STRATEGY == "fsdp" else {1.0}), Witness.shares
        best = torch.load(f"{OUT}/{name}/checkpoints/best.ckpt", weights_only=True)["state_dict"]
        for key, value in objective.state_dict().items():  # whole, and the kept ones
            assert torch.equal(value, best[key]), key
"""
METHODS = ("copy", "distill", "gta", "features")


def history(run: Path) -> list[dict[str, float]]:
    rows = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def same(run: Path, other: Path) -> None:
    """Histories, weights, averages and optimiser state of two runs are equal, and their files are of one kind."""
    assert len(history(run)) == 4
    for row, there in zip(history(run), history(other), strict=True):
        assert there == pytest.approx(row, rel=1e-6, abs=1e-6)
    ours, theirs = (torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (run, other))
    assert set(ours) == set(theirs)
    for part in ("state_dict", "training_weights"):
        assert (ours[part] is None) == (theirs[part] is None)
        if ours[part] is None:
            continue
        assert list(ours[part]) == list(theirs[part])
        for name, value in ours[part].items():
            torch.testing.assert_close(theirs[part][name], value, rtol=0, atol=1e-9)
    mine, others = ours["optimizer"], theirs["optimizer"]
    assert mine["param_groups"] == others["param_groups"]
    for place, values in mine["state"].items():
        for name, value in values.items():
            torch.testing.assert_close(others["state"][place][name], value, rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "training.py"
    path.write_text(TRAINING)
    return path


@pytest.fixture(scope="module")
def one(script: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process."""
    out = tmp_path_factory.mktemp("one")
    in_this_process(script, out, *METHODS)
    return out


def in_this_process(script: Path, out: Path, *methods: str) -> None:
    before, sys.argv = sys.argv, [str(script), str(out), "ddp", "0", *methods]
    try:
        runpy.run_path(str(script))
    finally:
        sys.argv = before


def assert_ended(processes: list[CompletedProcess[str]]) -> None:
    for process in processes:
        assert process.returncode == 0, process.stderr[-4000:]


@pytest.mark.slow
def test_shares_make_the_steps_of_whole_weights(
    script: Path, one: Path, tmp_path: Path, in_two_processes: InTwo
) -> None:
    assert_ended(in_two_processes(str(script), str(tmp_path), "fsdp", "0", *METHODS))
    for method in METHODS:
        same(one / method, tmp_path / method)


def test_a_run_is_taken_up_with_and_without_shares(
    script: Path, one: Path, tmp_path: Path, in_two_processes: InTwo, python: Python
) -> None:
    cut = in_two_processes(str(script), str(tmp_path / "cut"), "fsdp", "9", "copy")  # in the third epoch
    assert cut[0].returncode == 7, cut[0].stderr[-4000:]
    assert len(history(tmp_path / "cut" / "copy")) == 2  # which are in the checkpoint
    in_this_process(script, tmp_path / "cut", "copy")
    same(one / "copy", tmp_path / "cut" / "copy")
    assert python(str(script), str(tmp_path / "whole"), "ddp", "9", "copy").returncode == 7
    assert len(history(tmp_path / "whole" / "copy")) == 2
    assert_ended(in_two_processes(str(script), str(tmp_path / "whole"), "fsdp", "0", "copy"))
    same(one / "copy", tmp_path / "whole" / "copy")


def test_the_verb_takes_it(teacher: str, tmp_path: Path, in_two_processes: InTwo) -> None:
    out = tmp_path / "run"
    words = f"train --preset copy --teacher {teacher} --shots 2 --recipe.epochs 2 --recipe.batch-size 8 --out {out}"
    assert_ended(in_two_processes("-m", "attention_transfer", *words.split(), "--strategy", "fsdp"))
    assert "2 x cpu, weights in shares (FSDP)" in (out / "log.txt").read_text()
    assert json.loads((out / "summary.json").read_text())["test"]["images"] == 450
    assert load_run(out).spec.classes == 10
    last = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [name for name in last["state_dict"] if "teacher" in name]
    recipe = Recipe(epochs=2, batch_size=8)
    again = train("copy", teacher=teacher, shots=2, recipe=recipe, out=str(out))
    assert again.path == out  # the same run, whatever computed it


@pytest.mark.parametrize(
    ("recipe", "processes", "message"),
    [
        (ResolvedRecipe(), 1, "strategy is fsdp, which shares a network out to several devices, but this runs on one"),
        (ResolvedRecipe(precision="fp16"), 2, "does not scale the loss, as recipe.precision fp16 must"),
        (ResolvedRecipe(compile=True), 2, "can't be compiled as a whole"),
    ],
)
def test_what_shares_do_not_go_with_is_refused(recipe: ResolvedRecipe, processes: int, message: str) -> None:
    problems = Hardware("cuda", processes, strategy="fsdp").problems(recipe)
    assert [message in problem for problem in problems] == [True]


def test_a_strategy_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="strategy is 'fspd'; did you mean 'fsdp'"):
        choose_hardware(strategy="fspd")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="strategy is fsdp, which shares"):
        train("scratch", strategy="fsdp", out=str(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_weights_that_are_needed_whole_are_not_cut(tmp_path: Path) -> None:
    objective = Supervised(AttentionTransfer(None, _vit(), [L2SP()]))
    images = TensorDataset(torch.zeros(4, 1, 8, 8), torch.arange(4))
    with pytest.raises(UserError, match="L2SP compares the weights as a whole, which strategy fsdp cuts"):
        fit(
            Training(
                objective=objective,
                folder=tmp_path,
                recipe=ResolvedRecipe(),
                train=images,
                validation=images,
                devices=2,
                strategy="fsdp",
            )
        )
    with pytest.raises(UserError, match="trained leaves rows of fused projections as they are"):
        train("scratch", trained=["qk"], devices=2, strategy="fsdp", out=str(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def _vit() -> nn.Module:
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 24, "depth": 2, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", **sizes, num_classes=5)  # type: ignore[no-any-return]


@given(st.integers(1, 200), st.integers(2, 40), st.integers(1, 6))
def test_processes_evaluate_every_image_once_in_equal_numbers_of_batches(total: int, size: int, processes: int) -> None:
    images = TensorDataset(torch.zeros(total, 1))
    if total < processes:
        with pytest.raises(UserError, match=f"{total} images can't be evaluated by {processes} devices"):
            EqualBatches(images, size, process=0, processes=processes)
        return
    own = [list(EqualBatches(images, size, process=rank, processes=processes)) for rank in range(processes)]
    assert len({len(batches) for batches in own}) == 1
    assert all(0 < len(batch) <= size for batches in own for batch in batches)
    assert sorted(index for batches in own for batch in batches for index in batch) == list(range(total))
