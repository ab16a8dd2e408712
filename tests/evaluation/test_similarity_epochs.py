"""`similarity --epochs`: the drift of a run over its training, of the weights that it keeps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from attention_transfer import UserError, cli, load_vit, similarity, train
from attention_transfer.config.recipe import Recipe
from attention_transfer.data import digits
from attention_transfer.evaluation import Drift, load_run
from attention_transfer.evaluation import similarity as measured
from attention_transfer.evaluation.epochs import KeptEpochs
from attention_transfer.evaluation.subjects import spread
from attention_transfer.vit import save_vit


@pytest.fixture(scope="module")
def run(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three epochs at a rate at which each changes the attention."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = Recipe(epochs=3, warmup=0, lr=0.05, batch_size=50, validate_every=1, ema_decay=None, keep_epochs=True)
    train("gta", teacher=teacher, out=str(folder), shots=2, recipe=recipe, loggers=[])
    return str(folder)


def test_drift_is_the_similarity_of_each_epochs_weights(
    run: str, teacher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = similarity(run, epochs=True, limit=12, rows=2)
    images = digits().test.images
    twelve = images.take(spread(len(images), 12))
    student, source, kept = load_run(run).network.student, load_vit(teacher).eval(), KeptEpochs.of(run)
    for epoch, drift in zip((1, 2, 3), found.drift, strict=True):
        student.load_state_dict(kept.weights(epoch))
        expected = measured(student, source, twelve, rows=2)
        assert expected.js.same is not None
        assert expected.cka is not None
        diagonals = [tuple(matrix[i][i] for i in range(2)) for matrix in (expected.js.same, expected.cka)]
        assert drift == Drift(epoch, *diagonals)
    assert found.js == expected.js, "all else is of the last epoch"
    assert len({drift.js for drift in found.drift}) == 3
    shown = capsys.readouterr().err
    assert "run from model, by epoch: 12 images of digits, 2 rows each" in shown
    assert found.drift[1].js is not None
    assert f"{found.drift[1].js[1]:.3f}" in shown


def test_a_source_may_be_named_and_files_are_written(
    run: str, tiny_vit: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_vit(tiny_vit(num_heads=2), tmp_path / "other")
    out = tmp_path / "out"
    cli.run(["similarity", run, str(tmp_path / "other"), "--epochs", "--limit", "8", "--out", str(out)])
    written = json.loads((out / "similarity.json").read_text())
    assert written["b"] == str(tmp_path / "other")
    assert [drift["epoch"] for drift in written["drift"]] == [1, 2, 3]
    assert all(drift["js"] is None and len(drift["cka"]) == 2 for drift in written["drift"])
    assert Image.open(out / "similarity.png").height > 300
    assert "no divergence of heads of the same index" in capsys.readouterr().err
    with pytest.raises(UserError, match="there is nothing to follow over epochs"):
        similarity(run, str(tmp_path / "other"), epochs=True, limit=3)


def test_wrong_settings(run: str, teacher: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="b is left out; name a second network, or set epochs"):
        similarity(run)
    with pytest.raises(UserError, match="image_size is given, but the weights of epochs fit the run's own size"):
        similarity(run, epochs=True, image_size=16)
    with pytest.raises(UserError, match=r"fewer than two epochs; name a run .* --recipe\.keep-epochs true"):
        similarity(teacher, run, epochs=True)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = (copy / "config.yaml").read_text()
    there = next(line for line in config.splitlines() if line.startswith("teacher:"))
    (copy / "config.yaml").write_text(config.replace(there, "teacher: null"))
    with pytest.raises(UserError, match="copy has no teacher; name the network to compare it with"):
        similarity(str(copy), epochs=True)
    similarity(str(copy), teacher, epochs=True, limit=4)
