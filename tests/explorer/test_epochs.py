"""Runs: the epochs whose weights are kept, the curves, and a student that copies its teacher's attention."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attention_transfer.config.explore import Explore
from attention_transfer.config.recipe import Recipe
from attention_transfer.data import eval_transform
from attention_transfer.engine.checkpoints import last_checkpoint, read_checkpoint
from attention_transfer.errors import UserError
from attention_transfer.evaluation import load_run
from attention_transfer.evaluation.epochs import KeptEpochs
from attention_transfer.explorer.opening import loaded
from attention_transfer.explorer.session import Explorer, Session
from attention_transfer.verbs import train
from attention_transfer.vit import capture


@pytest.fixture(scope="module")
def run(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of which the first is the best, so that the last is another."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(5):
        recipe = Recipe(epochs=2, warmup=0, lr=0.5, batch_size=50, validate_every=1, ema_decay=None)
        out = train("gta", teacher=teacher, out=str(folder / str(seed)), shots=2, seed=seed, recipe=recipe, loggers=[])
        if out.summary["best_epoch"] == 1:
            return Path(out.path)
    raise AssertionError("no run got worse")


def explorer_of(*names: str) -> Explorer:
    return loaded(Explore(models=list(names), limit=3))


def row(session: Session, **arguments: object) -> Any:
    return np.frombuffer(
        session.answer("rows", {"network": "0", "image": "1", "query": 2, **arguments}).buffers[0], "<f4"
    )


def test_a_run_has_its_best_and_its_last_epoch(run: Path) -> None:
    explorer = explorer_of(str(run))
    session = Session(explorer)
    meta: Any = session.answer("epochs", {"network": "0"}).meta
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert meta["epochs"] == [1, 2]
    assert meta["kept"] == [1, 2] == session.answer("state", {}).meta["networks"][0]["epochs"]  # type: ignore[index, call-overload]
    assert list(meta["accuracy"]) == [each["validation/accuracy"] for each in rows]
    assert list(meta["drift"]) == pytest.approx([1 - each["agreement/layer_2"] for each in rows], abs=1e-6)


def test_a_run_that_keeps_its_epochs_has_them_all(teacher: str, tmp_path: Path) -> None:
    recipe = Recipe(epochs=3, batch_size=50, validate_every=1, keep_epochs=True)
    out = tmp_path / "run"
    train("gta", teacher=teacher, out=str(out), shots=1, recipe=recipe, loggers=[])
    files = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert files == ["best.ckpt", "epoch-1.ckpt", "epoch-2.ckpt", "epoch-3.ckpt", "last.ckpt"]
    kept = KeptEpochs.of(str(out))
    assert [*kept.files] == [1, 2, 3]
    last = read_checkpoint(last_checkpoint(out))["state_dict"]
    for name, weights in kept.weights(3).items():
        assert torch.equal(weights, last[f"transfer.student.{name}"])
    first = kept.weights(1)
    assert any(not torch.equal(first[name], weights) for name, weights in kept.weights(3).items())
    sizes = {path.name: path.stat().st_size for path in (out / "checkpoints").iterdir()}
    assert sizes["epoch-3.ckpt"] < sizes["last.ckpt"] / 2  # no state of the optimiser
    other = replace(recipe, keep_epochs=False)
    train("gta", teacher=teacher, out=str(out), shots=1, recipe=other, loggers=[])  # the same run
    train("gta", teacher=teacher, out=str(out), shots=1, recipe=replace(other, epochs=1), loggers=[], overwrite=True)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_at_another_image_size_there_are_curves_and_no_epochs(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        session = Session(loaded(Explore(models=[str(run)], limit=1, image_size=16)))
    meta: Any = session.answer("epochs", {"network": "0"}).meta
    assert meta["epochs"] == [1, 2]
    assert not meta["kept"]
    assert "epochs can't be shown at another image_size" in caplog.text
    session.answer("rows", {"network": "0", "image": "0", "query": 2, "layer": 0})


def test_the_weights_of_an_epoch_are_those_of_its_checkpoint(run: Path) -> None:
    explorer = explorer_of(str(run))
    session = Session(explorer)
    own, best, last = (row(session, layer=1, **epoch) for epoch in ({}, {"epoch": 1}, {"epoch": 2}))
    np.testing.assert_allclose(own, best, atol=1e-6)  # the weights that are kept are the best epoch's
    network = load_run(run)
    state = read_checkpoint(last_checkpoint(run))["state_dict"]
    student = network.network.student
    student.load_state_dict({k.removeprefix("transfer.student."): v for k, v in state.items() if "student" in k})
    with torch.no_grad(), capture(student, layers=[1]) as calls:
        student(eval_transform(network.spec)(explorer.offered[1].open())[None])
    np.testing.assert_allclose(last, calls[0].maps()[0, :, 2].flatten(), atol=1e-6)
    assert np.abs(last - best).max() > 1e-3
    with pytest.raises(UserError, match="the weights of epoch 7 are not kept; there are: 1, 2"):
        row(session, layer=1, epoch=7)


def test_images_are_the_runs_own_with_labels(run: Path) -> None:
    explorer = explorer_of(str(run))
    assert {picture.label for picture in explorer.offered} <= set(map(str, range(10)))
    place: Any = Session(explorer).answer("place", {"network": "0", "image": "0"}).meta
    assert place["loss"] > 0


def test_other_models_have_no_epochs(teacher: str, tmp_path: Path) -> None:
    assert KeptEpochs.of(teacher) == KeptEpochs.of("builtin/vit_digits") == KeptEpochs()


def test_damaged_checkpoints_are_left_out(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    last_checkpoint(copy).write_bytes(b"PK\x03\x04 nothing")
    kept = KeptEpochs.of(str(copy))
    assert not kept.files
    assert kept.curves is not None


def test_a_student_that_copies_is_seen_with_its_teachers_attention(teacher: str, tmp_path: Path) -> None:
    out = train("copy", teacher=teacher, out=str(tmp_path / "run"), shots=2, recipe=Recipe(epochs=1), loggers=[])
    session = Session(loaded(Explore(models=[str(out.path), teacher], data="digits", limit=2)))
    own, theirs = (row(session, layer=1, network=network) for network in "01")
    np.testing.assert_allclose(own, theirs, atol=1e-5)
    # Its attention is the teacher's already, so that nothing changes.
    meta: Any = session.answer("causal", {"student": "0", "teacher": "1", "image": "0", "layer": "all"}).meta
    assert meta["change"]["prediction"] == pytest.approx(0, abs=1e-6)
