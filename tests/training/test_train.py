"""The verb `train`, from labels to a run folder, with a tiny teacher."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from torch import nn

from attention_transfer import PRESETS, Copy, Pairing, UserError, load_run, load_vit
from attention_transfer.data import digits, eval_transform
from attention_transfer.training import Interrupted, Recipe, Run, read_metrics, train
from attention_transfer.training.callbacks import AveragedWeights, ShowProgress
from attention_transfer.vit import save_vit

RECIPE = Recipe(epochs=6, batch_size=8, validate_every=2)


def train_tiny(teacher: str, out: Path, preset: str = "distill", **changes: Any) -> Run:
    return train(preset, **{"teacher": teacher, "shots": 2, "recipe": RECIPE, "out": str(out), **changes})


def history(run: Run) -> list[dict[str, float]]:
    return read_metrics(run.path / "metrics.jsonl")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_leaves_a_whole_run_folder(preset: str, teacher: str, tmp_path: Path) -> None:
    run = train_tiny(teacher, tmp_path / "run", preset)
    names = {p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file()}
    assert names == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "metrics.csv",
        "log.txt",
        "figures/curve.png",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "model/config.json",
        "model/model.safetensors",
        "summary.json",
    }
    assert json.loads((run.path / "summary.json").read_text()) == run.summary
    assert [row["epoch"] for row in history(run)] == [1, 2, 3, 4, 5, 6]
    assert run.summary["train"] == {"images": 20, "steps": 18, "seconds": run.summary["train"]["seconds"]}


def test_the_reported_accuracy_is_that_of_the_kept_weights(teacher: str, tmp_path: Path) -> None:
    run = train_tiny(teacher, tmp_path / "run", "copy")
    loaded = load_run(run.path)
    test = digits().test.with_transform(eval_transform(loaded.spec)).materialised()
    images, labels = test.tensors
    with torch.no_grad():
        right = (loaded.network(images).argmax(dim=1) == labels).float().mean()
    assert float(right) == pytest.approx(run.accuracy, abs=1e-6)
    best = max(row["validation/accuracy"] for row in history(run) if "validation/accuracy" in row)
    assert run.summary["validation"]["accuracy"] == best


def test_plain_timm_loads_the_student(teacher: str, tmp_path: Path) -> None:
    run = train_tiny(teacher, tmp_path / "run", "finetune")
    student = timm.create_model(f"local-dir:{run.path / 'model'}", pretrained=True).eval()
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(student(images), load_run(run.path).network(images))


def test_the_same_run_twice_gives_identical_numbers(teacher: str, tmp_path: Path) -> None:
    first, second = (train_tiny(teacher, tmp_path / name) for name in "ab")
    assert history(first) == history(second)
    assert first.summary["test"] == second.summary["test"]


def test_another_seed_gives_other_numbers(teacher: str, tmp_path: Path) -> None:
    first, second = (train_tiny(teacher, tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert history(first) != history(second)


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_tiny(teacher, tmp_path / "whole")
    handler = signal.getsignal(signal.SIGINT)

    def press_ctrl_c(callback: ShowProgress, trainer: L.Trainer, *rest: object) -> None:
        if trainer.global_step == 11:  # in the middle of the fourth epoch: the checkpoint is that of the second
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ShowProgress, "on_train_batch_end", press_ctrl_c)
        with pytest.raises(Interrupted):
            train_tiny(teacher, tmp_path / "cut")
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "cut" / "summary.json").exists()
    resumed = train_tiny(teacher, tmp_path / "cut")
    assert history(resumed) == history(whole)
    assert {**resumed.summary, "train": None} == {**whole.summary, "train": None}


def test_a_killed_run_goes_on_to_the_same_numbers(teacher: str, tmp_path: Path) -> None:
    many = Recipe(epochs=60, batch_size=8, validate_every=2)
    arguments = f"train --preset copy --teacher {teacher} --shots 2 --recipe.epochs 60 --recipe.batch-size 8 "
    arguments += f"--recipe.lr 0.001 --recipe.validate-every 2 --out {tmp_path / 'cut'}"
    process = subprocess.Popen(
        [sys.executable, "-m", "attention_transfer", *arguments.split()], stderr=subprocess.DEVNULL
    )
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert last.exists()
    assert not (tmp_path / "cut" / "summary.json").exists()
    resumed = train_tiny(teacher, tmp_path / "cut", "copy", recipe=many)
    whole = train_tiny(teacher, tmp_path / "whole", "copy", recipe=many)
    assert history(resumed) == history(whole)
    assert resumed.summary["test"] == whole.summary["test"]


def test_a_finished_run_is_not_run_again(teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_tiny(teacher, tmp_path / "run")
    monkeypatch.setattr(
        import_module("attention_transfer.training.train"), "fit", lambda *_, **__: pytest.fail("trained again")
    )
    assert train_tiny(teacher, tmp_path / "run").summary == first.summary


def test_a_run_killed_after_its_last_epoch_only_needs_its_summary(teacher: str, tmp_path: Path) -> None:
    run = train_tiny(teacher, tmp_path / "run")
    rows = history(run)
    (run.path / "summary.json").unlink()
    shutil.rmtree(run.path / "model")
    again = train_tiny(teacher, tmp_path / "run")
    assert history(again) == rows
    assert {**again.summary, "train": None} == {**run.summary, "train": None}
    assert load_run(again.path).spec.classes == 10


def test_the_teacher_is_neither_changed_nor_saved(teacher: str, tmp_path: Path) -> None:
    before = load_vit(teacher).state_dict()
    run = train_tiny(teacher, tmp_path / "run")
    after = load_vit(teacher).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    checkpoint = torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if "teacher" in name]
    student = sum(p.numel() for p in load_vit(str(run.path)).parameters())
    assert sum(t.numel() for t in checkpoint["state_dict"].values()) == student


def test_a_damaged_checkpoint_is_named(teacher: str, tmp_path: Path) -> None:
    run = train_tiny(teacher, tmp_path / "run")
    (run.path / "summary.json").unlink()
    last = run.path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged and the run"):
        train_tiny(teacher, tmp_path / "run")


def test_scratch_needs_no_teacher(tmp_path: Path) -> None:
    run = train("scratch", shots=1, recipe=Recipe(epochs=1, batch_size=10), out=str(tmp_path / "run"))
    assert run.summary["train"]["images"] == 10


@pytest.mark.parametrize("heads", ["mean", "match"])
def test_a_student_of_another_shape_copies_its_teacher_and_is_loaded_again(
    heads: str, teacher: str, tiny_vit: Any, tmp_path: Path
) -> None:
    save_vit(tiny_vit(num_heads=1, embed_dim=16), tmp_path / "small")
    pairing = Pairing(layers="last", heads=heads)  # type: ignore[arg-type]
    settings: dict[str, Any] = {"student": str(tmp_path / "small"), "pairing": pairing, "shots": 2, "epochs": 1}
    rules = [Copy(layers=2)]
    run = train("copy", teacher=teacher, rules=rules, out=str(tmp_path / "run"), **settings)  # type: ignore[arg-type]
    loaded = load_run(run.path)
    assert (loaded.spec.depth, loaded.spec.heads) == (3, 1)
    assert loaded.network.transfer.rules == tuple(rules)
    pairs = loaded.network.transfer.head_pairs
    if heads == "match":
        assert pairs is not None
        assert pairs.pairs.tolist() == run.summary["head_pairs"]
        assert (pairs.pairs[1:] >= 0).all()
    else:
        assert pairs is None


def test_a_student_of_its_own_and_a_pairing_need_a_method_that_uses_them(teacher: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"teacher": teacher, "out": str(tmp_path / "run")}
    with pytest.raises(UserError, match="starts from random weights; leave --student out"):
        train("gta", student="builtin/vit_digits", **settings)
    with pytest.raises(UserError, match="pairing has no effect without rules"):
        train("scratch", pairing=Pairing(), **settings)
    assert not (tmp_path / "run").exists()


def test_every_mistake_is_listed_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        train("copy", pretrained=False, fraction=2.0, recipe=Recipe(epochs=0), out=str(tmp_path / "run"))
    message = str(caught.value)
    assert "fraction is 2.0" in message
    assert "recipe.epochs is 0" in message
    assert "needs a teacher" in message
    assert "no teacher is named" in message
    assert list(tmp_path.iterdir()) == []


def test_more_shots_than_images_are_refused_before_anything_is_written(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has only"):
        train_tiny(teacher, tmp_path / "run", shots=1000)
    assert not (tmp_path / "run").exists()


def test_averaged_weights_follow_the_warmed_up_decay() -> None:
    network = nn.Linear(1, 1, bias=False)
    callback = AveragedWeights(decay=0.5)
    averaged = torch.optim.swa_utils.AveragedModel(network, **callback._kwargs)
    weights = [3.0, 5.0, -1.0, 7.0, 2.0]
    expected = weights[0]
    for count, weight in enumerate(weights):
        network.weight.data.fill_(weight)
        averaged.update_parameters(network)
        if count > 0:
            decay = min(0.5, (1 + count) / (10 + count))
            expected = decay * expected + (1 - decay) * weight
        assert averaged.state_dict()["module.weight"].item() == pytest.approx(expected)
