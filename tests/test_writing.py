"""Files and folders are there whole, or as they were; also after a power cut, and with what else is in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from attention_transfer import writing
from attention_transfer.errors import UserError
from attention_transfer.writing import whole_folder, write_whole


def fill(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_file_and_its_name_are_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def replaced(self: Path, target: Any) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_whole(tmp_path / "file", "x")
    assert done == [".file.unfinished", "rename", tmp_path.name]


@pytest.mark.parametrize("swaps", [True, False], ids=["in one step", "in two"])
def test_a_folder_keeps_what_is_not_replaced(swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not swaps:
        monkeypatch.setattr(writing, "_exchanged", lambda *_: False)
    target = tmp_path / "model"
    fill(target, weights="old", notes="mine")
    fill(target / "deep", more="mine")
    (target / "link").symlink_to("deep")
    with whole_folder(target, ["weights", "card"]) as folder:
        fill(folder, weights="new")
    assert content(target) == {"weights": "new", "notes": "mine", "deep/more": "mine"}
    assert (target / "link").readlink() == Path("deep")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("fails_at", [1, 2])
def test_the_old_folder_stays_where_the_exchange_fails(
    fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, calls, rename = tmp_path / "model", [], Path.rename
    fill(target, weights="old")

    def failing(self: Path, to: Any) -> Path:
        calls.append(to)
        if len(calls) == fails_at:
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(writing, "_exchanged", lambda *_: False)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output error"):
        patch.setattr(Path, "rename", failing)
        with whole_folder(target) as folder:
            fill(folder, weights="new")
    assert content(target) == {"weights": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_was_moved_away_by_a_killed_process_is_put_back(tmp_path: Path) -> None:
    fill(tmp_path / ".model.unfinished" / ".old", weights="old", notes="mine")
    fill(tmp_path / ".model.unfinished" / "model", weights="new")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "model"):
        raise KeyboardInterrupt
    assert content(tmp_path) == {"model/weights": "old", "model/notes": "mine"}


def test_two_at_once_do_not_clear_away_each_others_work(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "model") as folder:
        fill(folder, weights="first")
        with pytest.raises(UserError, match="being written by another command"), whole_folder(tmp_path / "model"):
            pass
    assert content(tmp_path) == {"model/weights": "first"}


def test_a_link_to_a_folder_elsewhere_stays_one(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere" / "model", weights="old")
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere" / "model")
    with whole_folder(tmp_path / "model") as folder:
        fill(folder, weights="new")
    assert (tmp_path / "model").is_symlink()
    assert content(tmp_path / "elsewhere") == {"model/weights": "new"}
