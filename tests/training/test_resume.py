"""A run that is killed goes on to the numbers of one that was not."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch

from attention_transfer import UserError
from attention_transfer.engine.checkpoints import best_checkpoint, write_checkpoint
from attention_transfer.engine.loop import Loop
from attention_transfer.training import read_metrics
from tests.warm import Python

# Each training is a process of its own, forked after the imports. The first two of "cut" are killed before a step that
# is drawn, behind the next checkpoint (one every eight steps), so that a slow machine changes nothing.
KILLING = """
import os, random, signal, sys
import attention_transfer.training.train
from attention_transfer import train
from attention_transfer.engine.loop import Loop
from attention_transfer.training import Recipe

teacher, folder, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
recipe = Recipe(epochs=8, batch_size=8, validate_every=2, mixup=0.8, cutmix=1.0, mix_probability=0.8, ema_decay=0.9,
                drop_path=0.2, workers=workers)
whole_step = Loop._step

def ended(name, steps=None):
    child = os.fork()
    if child == 0:
        done = []
        def step(loop, *given):
            if len(done) == steps:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(None)
            return whole_step(loop, *given)
        Loop._step = step
        train("distill", teacher=teacher, shots=3, recipe=recipe, out=f"{folder}/{name}")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

assert ended("whole") == 0
moments = random.Random(workers)
for _ in range(2):
    assert ended("cut", moments.randint(9, 12)) == -signal.SIGKILL
    assert os.path.exists(f"{folder}/cut/checkpoints/last.ckpt")
assert ended("cut") == 0
"""


def without_times(run: Path) -> tuple[list[dict[str, float]], dict[str, Any]]:
    rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(run / "metrics.jsonl")]
    summary = json.loads((run / "summary.json").read_text())
    del summary["train"]["seconds"]
    return rows, summary


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_again_and_again_a_run_ends_with_the_numbers_of_an_uninterrupted_one(
    workers: int, teacher: str, tmp_path: Path, python: Python
) -> None:
    done = python("-c", KILLING, teacher, str(tmp_path), str(workers))
    assert done.returncode == 0, done.stderr
    assert without_times(tmp_path / "cut") == without_times(tmp_path / "whole")
    assert "resumed after step" in (tmp_path / "cut" / "log.txt").read_text()
    assert sorted(p.name for p in (tmp_path / "cut" / "checkpoints").iterdir() if p.suffix == ".ckpt") == [
        "best.ckpt",
        "last.ckpt",
    ]


def played(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Let validations have these accuracies, one after the other, by epoch."""

    def evaluate(loop: Loop, images: Any) -> dict[str, float]:
        return {"accuracy": values[loop.epoch - 1] if images is loop.training.validation else 0.0}

    monkeypatch.setattr(Loop, "_evaluate", evaluate)


def epoch_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["epoch"])


def test_the_last_checkpoint_is_of_the_last_validation_and_the_best_of_the_best(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played(monkeypatch, [0.2, 0.5, 0.4, 0.5, 0.1, 0.3])
    fitted = tiny.fit(tiny.objective("distill"), tmp_path, replace(tiny.recipe, epochs=6))
    assert fitted.best_epoch == epoch_of(best_checkpoint(tmp_path)) == 2  # the first of equals
    assert epoch_of(tmp_path / "checkpoints" / "last.ckpt") == 6
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    kept = torch.load(best_checkpoint(tmp_path), weights_only=True)
    own = sum(p.numel() for p in tiny.build(2).parameters())
    assert sum(value.numel() for value in kept["state_dict"].values()) == own  # and none of the teacher's


def test_training_ends_after_so_many_validations_without_a_better_one(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played(monkeypatch, [0.2, 0.5, 0.4, 0.5, 0.9, 0.9])
    recipe = replace(tiny.recipe, epochs=6, early_stopping=2)
    fitted = tiny.fit(tiny.objective("scratch"), tmp_path, recipe)
    assert (fitted.best_epoch, fitted.steps) == (2, 12)
    again = tiny.fit(tiny.objective("scratch"), tmp_path, recipe)  # as where it was killed before its summary
    assert (again.best_epoch, again.steps) == (2, 12)
    assert [row["epoch"] for row in tiny.history(tmp_path)] == [1, 2, 3, 4]


def test_parameters_without_a_gradient_so_far_are_resumed_as_they_were(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(tiny.recipe, epochs=4, head_epochs=2)
    tiny.fit(tiny.objective("scratch"), tmp_path / "whole", recipe)
    run_epoch = Loop._run_epoch

    def dies_in_the_second(loop: Loop, bar: Any) -> None:
        if loop.epoch == 1:
            raise RuntimeError("killed")
        run_epoch(loop, bar)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Loop, "_run_epoch", dies_in_the_second)
        tiny.fit(tiny.objective("scratch"), tmp_path / "cut", recipe)
    tiny.fit(tiny.objective("scratch"), tmp_path / "cut", recipe)
    assert tiny.history(tmp_path / "cut") == tiny.history(tmp_path / "whole")


def test_a_run_goes_on_where_its_folder_was_moved(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played(monkeypatch, [0.2, 0.9, 0.4])
    tiny.fit(tiny.objective("scratch"), tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    fitted = tiny.fit(tiny.objective("scratch"), tmp_path / "there")
    assert fitted.best_epoch == 2


def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "last.ckpt"
    first: Any = {"epoch": 1}
    write_checkpoint(first, target)

    def fill(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_checkpoint(first | {"epoch": 2}, target)
    assert caught.value.filename == str(target)
    monkeypatch.undo()
    assert torch.load(target, weights_only=True) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [target]


def flipped(path: Path) -> None:
    """Turn one bit of the largest tensor."""
    with ZipFile(path) as archive:
        part = max(archive.infolist(), key=lambda found: found.file_size)
    content = bytearray(path.read_bytes())
    content[part.header_offset + 100 + part.file_size // 2] ^= 0x40
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone"])
def test_a_damaged_last_checkpoint_is_noticed_and_the_best_taken(
    damage: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    played(monkeypatch, [0.2, 0.9, 0.4])
    what = tiny.objective("distill")
    whole = tiny.fit(what, tmp_path)
    rows, weights, last = tiny.history(tmp_path), tiny.weights(what), tmp_path / "checkpoints" / "last.ckpt"
    if damage == "flipped":
        flipped(last)
    elif damage == "gone":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[: 1000 * (damage == "cut")])
    (tmp_path / "metrics.jsonl").unlink()  # the checkpoint has it, too
    what = tiny.objective("distill")
    again = tiny.fit(what, tmp_path)
    assert (again.best_epoch, again.steps, again.validation) == (whole.best_epoch, whole.steps, whole.validation)
    assert tiny.history(tmp_path) == rows
    assert all(torch.equal(weights[name], value) for name, value in tiny.weights(what).items())
    assert ("is damaged; going on from best.ckpt, of epoch 2" in caplog.text) == (damage != "gone")
    assert epoch_of(last) == 3


def test_a_damaged_best_checkpoint_is_refused_before_any_work(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played(monkeypatch, [0.2, 0.9, 0.4])
    tiny.fit(tiny.objective("scratch"), tmp_path)
    flipped(tmp_path / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match=r"best\.ckpt is damaged and the run can't go on"):
        tiny.fit(tiny.objective("scratch"), tmp_path, replace(tiny.recipe, epochs=5))
    assert epoch_of(tmp_path / "checkpoints" / "last.ckpt") == 3


@pytest.mark.parametrize("damage", [b"", b'{"epoch": 1, "st', b"\xff\n\n", b'{"epoch": 1, "step": 3}\n{"epo'])
def test_damaged_metrics_do_not_keep_a_run_from_going_on(damage: bytes, tiny: Any, tmp_path: Path) -> None:
    tiny.fit(tiny.objective("scratch"), tmp_path)
    rows = tiny.history(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(damage)
    tiny.fit(tiny.objective("scratch"), tmp_path)
    assert tiny.history(tmp_path) == rows


def test_what_was_cut_smaller_for_memory_stays_so_when_it_is_resumed(tiny: Any, tmp_path: Path) -> None:
    tiny.fit(tiny.objective("scratch"), tmp_path, replace(tiny.recipe, accumulate=4))
    sizes: list[int] = []
    what = tiny.objective("scratch")
    what.vit.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])) if module.training else None)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["accumulate"] == 4
    tiny.fit(what, tmp_path, replace(tiny.recipe, epochs=6))
    assert set(sizes) == {2}


def test_weights_that_are_balanced_need_labels(tiny: Any, tmp_path: Path) -> None:
    bare: Any = [tiny.images(20)[i] for i in range(20)]
    with pytest.raises(UserError, match=r"recipe\.balanced needs images with labels"):
        tiny.fit(tiny.objective("scratch"), tmp_path, replace(tiny.recipe, balanced=True), train=bare)
