"""No verb writes to what it reads, however that is spelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attention_transfer.places import file_problems, folder_problems, read_places


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images, a run that has others in it, a link to each, and a table."""
    for name in ("photos/deep", "run/photos", "run/model"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("photos/a.png", "run/photos/a.png", "run/config.yaml", "table.csv", "photos/labels.csv"):
        (tmp_path / name).write_text("x")
    (tmp_path / "link").symlink_to("photos")
    (tmp_path / "run-link").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("out", "data"),
    [
        ("run", "run/photos"),
        ("run", "./run/../run/photos/"),
        ("run", "HERE/run/photos"),
        ("run", "~/run/photos"),
        ("run", "run-link/photos"),
        ("run-link", "run/photos"),
        ("run", "run/photos/*.png"),
        ("run", "run/{photos,model}/x.tar"),
        ("run", "hf/run/photos"),
        ("run", "torchvision/CIFAR10:run/photos"),
        ("photos", "photos"),
        ("photos/new", "photos"),
        ("photos/deep/../new", "photos"),
        ("link/new", "photos"),
        ("photos/new", "link"),
        (".", "photos"),
        (".", "table.csv"),
    ],
)
def test_a_folder_is_refused_that_holds_what_is_read_or_is_among_the_images(here: Path, out: str, data: str) -> None:
    (problem,) = folder_problems(Path(out), data=[data.replace("HERE", str(here))])
    assert problem.endswith("choose another folder")


def test_a_link_among_the_images_counts_where_it_is(here: Path) -> None:
    (here / "looks").mkdir()
    (here / "looks" / "a.png").symlink_to(here / "photos" / "a.png")
    assert folder_problems(Path("looks"), data=["looks/a.png"])


@pytest.mark.skipif(not (Path(__file__).parent / "TEST_PLACES.py").exists(), reason="the file system knows cases")
def test_other_case_is_the_same_folder(here: Path) -> None:
    assert folder_problems(Path("RUN"), data=["run/photos"])


@pytest.mark.parametrize("model", ["run", "run/model", "run-link", "HERE/run"])
def test_a_teacher_is_never_what_is_written(here: Path, model: str) -> None:
    assert folder_problems(Path("run"), models=[model.replace("HERE", str(here))])
    assert not folder_problems(Path("other"), models=[model])


@pytest.mark.parametrize(
    ("out", "settings"),
    [
        ("runs/x", {"data": ["photos"], "models": ["run"]}),
        ("run", {"data": ["digits"], "models": ["timm/run", None, True, "hf/none/such"]}),
        ("looks", {"data": ["photos/a.png", "*.png"], "models": ["run"]}),
        ("run/looks", {"data": ["photos"], "models": ["run"]}),
        ("photos/run", {"data": ["photos/a.png"]}),
    ],
)
def test_other_places_are_free(here: Path, out: str, settings: Any) -> None:
    assert folder_problems(Path(out), **settings) == []


def test_words_that_name_nothing_here_are_no_places(here: Path) -> None:
    assert read_places("digits", "", None, 3, "~nobody/x", "hf/google/vit", "https://host/a?b") == []


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("table.csv", "is read itself"),
        ("photos/labels.csv", "lies in photos, which is read and where nothing is replaced"),
        ("link/labels.csv", "where nothing is replaced"),
        ("run/config.yaml", "is a file of run itself"),
        ("run/summary.json", "is a file of run itself"),
        ("run-link/loggers.json", "is a file of run itself"),
        ("run/model/config.json", "is a file of run itself"),
        ("none/x.csv", "there is no folder none"),
        ("photos", "is a folder"),
    ],
)
def test_a_file_is_refused_that_is_read(here: Path, out: str, message: str) -> None:
    (problem,) = file_problems(
        Path(out),
        overwrite=True,
        data=["table.csv", "photos"],
        models=["run"],
        names=("config.yaml", "summary.json", "loggers.json", "model/config.json"),
    )
    assert message in problem


def test_another_file_may_be_beside_what_is_read(here: Path) -> None:
    assert file_problems(Path("photos/new.csv"), overwrite=False, data=["photos"]) == []
    assert file_problems(Path("run/predictions.csv"), overwrite=False, models=["run"], names=("config.yaml",)) == []
