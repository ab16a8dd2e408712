"""Who may write into a run's folder."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from attention_transfer import UserError
from attention_transfer.training import RunFolder, read_yaml
from attention_transfer.writing import write_whole

CONFIG = {"preset": "copy", "seed": 0, "out": "x", "overwrite": False}


def opened(path: Path, config: dict[str, Any], *, overwrite: bool = False) -> RunFolder:
    """A run's folder as a command leaves it that only begins the run."""
    with RunFolder.open(path, config, overwrite=overwrite) as folder:
        return folder


def test_a_new_folder_holds_configuration_and_environment(tmp_path: Path) -> None:
    folder = opened(tmp_path / "a" / "run", CONFIG)
    assert read_yaml(folder.path / "config.yaml") == CONFIG
    assert folder.has("environment.json")
    assert not folder.finished


def test_the_same_configuration_is_taken_up_wherever_it_lies(tmp_path: Path) -> None:
    opened(tmp_path, CONFIG)
    again = opened(tmp_path, {**CONFIG, "out": "elsewhere"})
    assert read_yaml(again.path / "config.yaml")["out"] == "x"


def test_another_configuration_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    opened(tmp_path, CONFIG)
    with pytest.raises(UserError, match="seed is 0 there and 1 here"):
        opened(tmp_path, {**CONFIG, "seed": 1})
    assert read_yaml(tmp_path / "config.yaml") == CONFIG


def test_devices_and_loggers_make_no_other_run_and_neither_does_the_number_of_workers(tmp_path: Path) -> None:
    config = {**CONFIG, "device": "auto", "devices": None, "loggers": None, "recipe": {"workers": 2, "accumulate": 1}}
    opened(tmp_path, config)
    moved = {"device": "cpu", "devices": 2, "nodes": 1, "loggers": ["wandb"]}
    opened(tmp_path, {**config, **moved, "recipe": {"workers": 6, "accumulate": 1}})
    with pytest.raises(UserError, match=r"recipe\.workers is 2 there and 0 here"):
        opened(tmp_path, {**config, "recipe": {"workers": 0, "accumulate": 1}})
    with pytest.raises(UserError, match=r"recipe\.accumulate is 1 there and 2 here"):
        opened(tmp_path, {**config, "recipe": {"workers": 2, "accumulate": 2}})


def test_a_run_that_was_killed_at_any_file_is_taken_up_and_leaves_no_rest(tmp_path: Path) -> None:
    whole = {"run.json", "config.yaml", "environment.json"}
    (tmp_path / ".run.json.unfinished").write_text('{"kind": ')
    opened(tmp_path, CONFIG)
    assert {p.name for p in tmp_path.iterdir()} == whole
    (tmp_path / "config.yaml").rename(tmp_path / ".config.yaml.unfinished")
    (tmp_path / "environment.json").unlink()
    opened(tmp_path, CONFIG)
    assert {p.name for p in tmp_path.iterdir()} == whole
    (tmp_path / "environment.json").rename(tmp_path / ".environment.json.unfinished")
    opened(tmp_path, CONFIG)
    assert {p.name for p in tmp_path.iterdir()} == whole
    (tmp_path / ".metrics.jsonl.unfinished").write_text('{"epoch": 1')
    write_whole(tmp_path / "metrics.jsonl", "")
    assert {p.name for p in tmp_path.iterdir()} == whole | {"metrics.jsonl"}


def test_other_processes_than_the_first_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path, CONFIG).write_json("summary.json", {})
    monkeypatch.setenv("LOCAL_RANK", "1")
    folder = opened(tmp_path, {**CONFIG, "seed": 1}, overwrite=True)
    folder.write_json("environment.json", {"other": 1})
    assert not folder.finished  # the first process is about to remove that
    monkeypatch.delenv("LOCAL_RANK")
    assert RunFolder(tmp_path).finished
    assert read_yaml(tmp_path / "config.yaml") == CONFIG
    assert "other" not in (tmp_path / "environment.json").read_text()


def test_overwrite_replaces_a_run(tmp_path: Path) -> None:
    opened(tmp_path, CONFIG).write_json("summary.json", {})
    folder = opened(tmp_path, {**CONFIG, "seed": 1}, overwrite=True)
    assert read_yaml(folder.path / "config.yaml")["seed"] == 1
    assert not folder.finished


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_something_else_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    precious = tmp_path / "thesis.tex"
    precious.write_text("years of work")
    with pytest.raises(UserError, match="holds no run"):
        opened(tmp_path, CONFIG, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        opened(tmp_path / "file", CONFIG)
    with pytest.raises(UserError, match=r"run can't be written: .*file is a file"):
        opened(tmp_path / "file" / "run", CONFIG)


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As the super-user everything is permitted, so the refusal of the system is played.
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="can't be written"):
        opened(tmp_path / "run", CONFIG)


def test_a_full_disk_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20})())
    with pytest.raises(UserError, match="has 1 MB left"):
        opened(tmp_path / "run", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    opened(tmp_path, CONFIG)
    (tmp_path / "config.yaml").write_text("a: 1\nb: [\n")
    with pytest.raises(UserError, match=r"not readable YAML \(line 3\)"):
        opened(tmp_path, CONFIG)


def test_what_a_run_keeps_must_not_change_while_it_is_unfinished(tmp_path: Path) -> None:
    folder = opened(tmp_path, CONFIG)
    folder.keep("labelled.txt", "a.png\n", "labelled images")
    folder.keep("labelled.txt", "a.png\n", "labelled images")
    with pytest.raises(UserError, match=r"begun with other labelled images \(labelled\.txt\)"):
        folder.keep("labelled.txt", "b.png\n", "labelled images")
    assert (tmp_path / "labelled.txt").read_text() == "a.png\n"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"
