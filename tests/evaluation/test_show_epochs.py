"""`show --epochs`: a frame for each epoch that a run keeps, on one scale, the teacher beside it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from attention_transfer import UserError, cli, show, train
from attention_transfer.config.recipe import Recipe
from attention_transfer.config.show import Show
from attention_transfer.data import digits
from attention_transfer.data.placement import Floats
from attention_transfer.evaluation.attention_panels import maps_of
from attention_transfer.evaluation.epochs import KeptEpochs
from attention_transfer.evaluation.subjects import load_subject, load_teacher
from attention_transfer.parser import parse

RECIPE = Recipe(epochs=3, warmup=0, lr=0.05, batch_size=50, validate_every=1, ema_decay=None, keep_epochs=True)


@pytest.fixture(scope="module")
def run(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three epochs at a rate at which each changes the attention."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train("gta", teacher=teacher, out=str(folder), shots=2, recipe=RECIPE, loggers=[])
    return str(folder)


@pytest.fixture
def digit(tmp_path: Path) -> str:
    path = tmp_path / "digit.png"
    digits().test.images[0].save(path)
    return str(path)


def map_of_teacher(run: str, digit: str) -> Floats:
    subject = load_teacher(run, "cpu")
    assert subject is not None
    (found,) = maps_of(subject, Image.open(digit), Show([run], [digit])).maps.values()
    return found


def maps_of_epochs(run: str, digit: str) -> list[Floats]:
    """The map of each epoch, of its checkpoint's weights."""
    subject, kept = load_subject(run, None, "cpu"), KeptEpochs.of(run)
    found: list[Floats] = []
    for epoch in (1, 2, 3):
        subject.vit.load_state_dict(kept.weights(epoch))
        found += maps_of(subject, Image.open(digit), Show([run], [digit])).maps.values()
    return found


def frames(path: Path) -> list[Image.Image]:
    with Image.open(path) as moving:
        found = []
        for frame in range(getattr(moving, "n_frames", 1)):
            moving.seek(frame)
            found.append(moving.convert("RGB"))
        return found


def titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.images]


def top_of_bar(figure: Figure) -> float:
    (bar,) = (axis for axis in figure.axes if not axis.images)
    return float(bar.get_ylim()[1])


def test_there_is_a_frame_for_each_epoch_and_one_scale(run: str, digit: str, tmp_path: Path) -> None:
    out = tmp_path / "epochs.gif"
    figure = show([run], [digit], epochs=True, clip=1, out=str(out))
    moving = frames(out)
    assert len(moving) == 3
    assert len({frame.size for frame in moving}) == 1
    assert titles(figure) == ["image", "teacher", "run"]
    assert figure.get_suptitle() == "epoch 3"
    maps = [map_of_teacher(run, digit), *maps_of_epochs(run, digit)]
    assert top_of_bar(figure) == pytest.approx(max(one.max() for one in maps))
    assert top_of_bar(figure) > maps[-1].max() + 1e-3, "the last epoch alone would end below it"
    # The photograph, the teacher and the bar stand still; the student and the title do not.
    pixels = [np.asarray(frame).astype(int) for frame in moving]
    moved = np.abs(pixels[2] - pixels[0]).max(axis=-1) > 40
    columns = np.flatnonzero(moved[len(moved) // 4 :].any(axis=0))
    third = moved.shape[1] / 3
    assert columns.min() > 1.6 * third
    assert columns.max() < 2.9 * third
    assert moved[: len(moved) // 8].any(), "the title says another epoch"


def test_a_panel_has_the_colours_of_its_epochs_weights(run: str, digit: str, tmp_path: Path) -> None:
    figure = show([run], [digit], epochs=True, clip=1, overlay=False, out=str(tmp_path / "epochs.gif"))
    last = [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images][-1].astype(int)
    (map_RC,) = maps_of_epochs(run, digit)[-1:]
    brightness = [[part.mean() for part in np.split(row, 2, axis=1)] for row in np.split(last, 2)]
    assert np.array_equal(np.argsort(np.ravel(brightness)), np.argsort(map_RC.ravel()))


def test_a_difference_is_that_from_the_teacher(run: str, digit: str, tmp_path: Path) -> None:
    figure = show([run], [digit], epochs=True, difference=True, clip=1, out=str(tmp_path / "epochs.gif"))
    assert titles(figure) == ["image", "teacher", "run", "run\n− teacher"]
    ends = [axis.get_ylim()[1] for axis in figure.axes if not axis.images]
    teacher = map_of_teacher(run, digit)
    assert ends[1] == pytest.approx(max(np.abs(one - teacher).max() for one in maps_of_epochs(run, digit)))


def test_a_teacher_that_is_gone_is_said(
    run: str, digit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, out = tmp_path / "copy", str(tmp_path / "epochs.gif")
    shutil.copytree(run, copy)
    config = (copy / "config.yaml").read_text()
    there = next(line for line in config.splitlines() if line.startswith("teacher:"))
    (copy / "config.yaml").write_text(config.replace(there, "teacher: /gone/teacher"))
    figure = show([str(copy)], [digit], epochs=True, out=out)
    assert titles(figure) == ["image", "copy"]
    assert "without the teacher: the teacher of" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"the teacher of .*copy can't be loaded"):
        show([str(copy)], [digit], epochs=True, difference=True, out=out, overwrite=True)
    (copy / "config.yaml").write_text(config.replace(there, "teacher: null"))
    with pytest.raises(UserError, match=r"copy has no teacher to show a difference from"):
        show([str(copy)], [digit], epochs=True, difference=True, out=out, overwrite=True)


def test_on_the_command_line(run: str, digit: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, config = parse(["show", run, digit, "--epochs"])
    assert isinstance(config, Show)
    assert config.out == "attention.gif"
    monkeypatch.chdir(tmp_path)
    cli.run(["show", run, digit, "--epochs", "--layers", "all"])
    assert len(frames(tmp_path / "attention.gif")) == 3
    with pytest.raises(UserError, match=r"attention\.gif exists"):
        cli.run(["show", run, digit, "--epochs"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out": "x.png"}, r"x\.png is one figure, and epochs are frames of a \.gif; name such a file with out"),
        ({"out": None}, r"out is left out, and epochs are frames of a \.gif"),
        ({"epochs": False}, r"x\.gif has a frame for each epoch of a run; set epochs, or choose \.png"),
        ({"models": 2}, "epochs are those of one run, and 2 networks are named; name the run alone"),
        ({"scale": "map"}, "scale is map, but all epochs share a scale; choose all or image"),
        ({"image_size": 16}, "image_size is given, but the weights of epochs fit the run's own size"),
    ],
)
def test_each_mistake_has_its_sentence(
    run: str, teacher: str, digit: str, settings: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"epochs": True, "out": "x.gif", **settings}
    models = [run, teacher][: given.pop("models", 1)]
    with pytest.raises(UserError, match=message):
        show(models, [digit], **given)


def test_runs_that_keep_one_epoch_are_told_how_to_keep_more(teacher: str, digit: str, tmp_path: Path) -> None:
    out = tmp_path / "epochs.gif"
    recipe = replace(RECIPE, epochs=1, keep_epochs=False)
    one = train("gta", teacher=teacher, out=str(tmp_path / "one"), shots=1, recipe=recipe, loggers=[])
    for name in (str(one.path), teacher):
        with pytest.raises(UserError, match=r"fewer than two epochs; name a run .* --recipe\.keep-epochs true"):
            show([name], [digit], epochs=True, out=str(out))
    assert not out.exists()
