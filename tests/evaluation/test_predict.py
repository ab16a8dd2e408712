"""The verb `predict`."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from attention_transfer import Run, UserError, load_run, predict, train
from attention_transfer.data import digits
from attention_transfer.training import Recipe


@pytest.fixture(scope="module")
def run(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("run") / "run"
    return train("copy", teacher=teacher, shots=2, recipe=Recipe(epochs=2, validate_every=1), out=str(out))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "digit.png"
    digits().test.images[0].save(path)
    return str(path)


def test_a_prediction_is_the_softmax_of_the_network(run: Run, picture: str) -> None:
    (prediction,) = predict(str(run.path), [picture], top=10)
    pixels = torch.from_numpy(np.asarray(digits().test.images[0]).astype(np.float32) / 255)
    with torch.no_grad():
        expected = load_run(run.path).network((pixels[None, None] - 0.5) / 0.5).softmax(dim=-1)[0]
    assert prediction.classes[0] == str(int(expected.argmax()))
    assert sorted(prediction.probabilities, reverse=True) == list(prediction.probabilities)
    np.testing.assert_allclose(prediction.probabilities, expected.sort(descending=True).values, atol=1e-5)


def test_predictions_are_written_as_csv_and_json(run: Run, picture: str, tmp_path: Path) -> None:
    (prediction,) = predict(str(run.path), [picture], top=2, out=str(tmp_path / "p.csv"))
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(prediction.classes)
    predict(str(run.path), [picture, picture], top=2, out=str(tmp_path / "p.json"))
    content = json.loads((tmp_path / "p.json").read_text())
    assert [entry["classes"] for entry in content] == [list(prediction.classes)] * 2


def test_every_unreadable_image_is_named_and_nothing_written(run: Run, picture: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    damaged = tmp_path / "half.png"
    damaged.write_bytes(Path(picture).read_bytes()[:60])
    with pytest.raises(UserError) as caught:
        predict(
            str(run.path),
            [picture, str(tmp_path / "text.png"), str(damaged), str(tmp_path / "gone.png")],
            out=str(tmp_path / "p.csv"),
        )
    for name in ("text.png", "half.png", "gone.png"):
        assert name in str(caught.value)
    assert not (tmp_path / "p.csv").exists()


def test_an_output_that_exists_is_kept(run: Run, picture: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        predict(str(run.path), [picture], out=str(tmp_path / "p.csv"))
    assert (tmp_path / "p.csv").read_text() == "mine"
    predict(str(run.path), [picture], out=str(tmp_path / "p.csv"), overwrite=True)
    assert (tmp_path / "p.csv").read_text() != "mine"


@pytest.mark.parametrize(("top", "out"), [(0, None), (11, None), (1, "p.txt"), (1, "no/such/folder/p.csv")])
def test_impossible_requests_are_refused(run: Run, picture: str, top: int, out: str | None) -> None:
    with pytest.raises(UserError):
        predict(str(run.path), [picture], top=top, out=out)


def test_a_copied_student_is_complete_by_itself_and_says_when_its_teacher_is_gone(run: Run, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run.path, moved)
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace("teacher: ", "teacher: /nowhere"))
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_run(moved).network(images), load_run(run.path).network(images))
    shutil.rmtree(moved / "teacher")
    with pytest.raises(UserError, match="the teacher is gone"):
        load_run(moved)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        load_run(tmp_path)
