"""Who may write into a run's folder."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from attention_transfer import UserError
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.training import RunFolder
from attention_transfer.writing import write_whole

CONFIG = {"preset": "copy", "seed": 0, "out": "x", "overwrite": False}


def opened(path: Path, config: dict[str, Any], *, overwrite: bool = False) -> RunFolder:
    """A run's folder as a command leaves it that only begins the run."""
    with RunFolder.open(path, config, overwrite=overwrite) as folder:
        return folder


def test_a_new_folder_holds_configuration_and_environment(tmp_path: Path) -> None:
    folder = opened(tmp_path / "a" / "run", CONFIG)
    assert read_mapping(folder.path / "config.yaml") == CONFIG
    assert folder.has("environment.json")
    assert not folder.finished


def test_the_same_configuration_is_taken_up_wherever_it_lies(tmp_path: Path) -> None:
    opened(tmp_path, CONFIG)
    again = opened(tmp_path, {**CONFIG, "out": "elsewhere"})
    assert read_mapping(again.path / "config.yaml")["out"] == "x"


def test_another_configuration_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    opened(tmp_path, CONFIG)
    with pytest.raises(UserError, match="seed is 0 there and 1 here"):
        opened(tmp_path, {**CONFIG, "seed": 1})
    assert read_mapping(tmp_path / "config.yaml") == CONFIG


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


def test_other_processes_than_the_first_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second_of_two: dict[str, str]
) -> None:
    opened(tmp_path, CONFIG).write_json("summary.json", {})
    with monkeypatch.context() as second:
        for name, value in second_of_two.items():
            second.setenv(name, value)
        folder = opened(tmp_path, {**CONFIG, "seed": 1}, overwrite=True)
        folder.write_json("environment.json", {"other": 1})
        assert not folder.finished  # the first process is about to remove that
    assert RunFolder(tmp_path).finished
    assert read_mapping(tmp_path / "config.yaml") == CONFIG
    assert "other" not in (tmp_path / "environment.json").read_text()


def test_overwrite_replaces_a_run_and_leaves_what_is_not_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(tmp_path, CONFIG).write_json("summary.json", {})
    own = ("metrics.jsonl", "checkpoints/last.ckpt", "model/config.json", "figures/curve.png", "log.txt")
    mine = ("notes.md", "model/mine.txt", "figures/mine.png", "photos/a/1.png", "checkpoints/old/best.ckpt", ".hidden")
    for name in (*own, *mine):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with caplog.at_level("INFO"):
        folder = opened(tmp_path, {**CONFIG, "seed": 1}, overwrite=True)
    assert read_mapping(folder.path / "config.yaml")["seed"] == 1
    assert not folder.finished
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"run.json", "config.yaml", "environment.json", *mine}
    assert "kept what the run did not write: .hidden, checkpoints, figures, model, notes.md, photos" in caplog.text


FOREIGN = {
    "hydra": {"config.yaml": "defaults: [_self_]\n", "thesis.tex": "years of work"},
    "mkdocs": {"mkdocs.yml": "site_name: mine", "config.yaml": "a: 1", "docs/index.md": "mine"},
    "looks like one": {"config.yaml": "{preset: copy, seed: 0}", "summary.json": "{}", "checkpoints/last.ckpt": "mine"},
    "other markers": {"run.json": '{"kind": "sprint"}', "environment.json": '{"packages": ["x"]}', "a.txt": "mine"},
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_no_run_wrote_is_no_runs_whatever_it_is_called(kind: str, overwrite: bool, tmp_path: Path) -> None:
    for name, text in FOREIGN[kind].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="holds no run"):
        opened(tmp_path, CONFIG, overwrite=overwrite)
    assert {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()} == FOREIGN[kind]


@pytest.mark.parametrize("key", ["data", "teacher", "student", "init", "pretrained", "model"])
def test_a_run_does_not_write_where_what_it_reads_lies(key: str, tmp_path: Path) -> None:
    opened(tmp_path, CONFIG)
    (tmp_path / "photos").mkdir()
    for place in (tmp_path, tmp_path / "photos"):
        with pytest.raises(UserError, match="which is read, lies in"):
            opened(tmp_path, {**CONFIG, key: str(place)}, overwrite=True)
    assert read_mapping(tmp_path / "config.yaml") == CONFIG


def test_words_that_happen_to_be_the_folders_name_are_no_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, config in {"digits": {"data": "digits"}, "teacher": {"init": "teacher"}}.items():
        for _ in range(2):
            opened(Path(name), {**CONFIG, **config})


def test_links_and_where_someone_is_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, link = tmp_path / "run", tmp_path / "link"
    (run / "sub").mkdir(parents=True)
    (run / "sub").rmdir()
    opened(run, CONFIG)
    link.symlink_to(run)
    opened(link, CONFIG)  # to go on is no harm
    with pytest.raises(UserError, match="is a link to"):
        opened(link, CONFIG, overwrite=True)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "best.ckpt").write_text("x")
    (run / "checkpoints").symlink_to(tmp_path / "scratch")
    with pytest.raises(UserError, match=r"checkpoints is a link to .*scratch, where nothing is removed"):
        opened(run, CONFIG, overwrite=True)
    (run / "checkpoints").unlink()
    with monkeypatch.context() as patch:
        patch.setenv("HOME", str(run))
        with pytest.raises(UserError, match="is the home folder"):
            opened(run, CONFIG, overwrite=True)
    for place in (Path(), Path("../run"), run):
        monkeypatch.chdir(run)
        with pytest.raises(UserError, match="is the current folder"):
            opened(place, CONFIG, overwrite=True)
    assert read_mapping(run / "config.yaml") == CONFIG


class Killed(BaseException):
    """As if the process had ended here."""


@pytest.mark.parametrize("moment", range(7))
@pytest.mark.parametrize("again", [True, False], ids=["the same command", "without --overwrite"])
def test_a_removal_that_is_killed_at_any_moment_is_completed_by_the_next(
    moment: int, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = opened(tmp_path, CONFIG)
    for name in ("metrics.jsonl", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "model/config.json", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    calls = [0]

    def dies(function: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] > moment:
                raise Killed
            return function(*args, **kwargs)

        return called

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "rename", dies(Path.rename))
        patch.setattr("shutil.rmtree", dies(shutil.rmtree))
        opened(tmp_path, {**CONFIG, "seed": 1}, overwrite=True)
    new = {**CONFIG, "seed": 1}
    if again or moment > 0:
        opened(tmp_path, new, overwrite=again)
        assert read_mapping(tmp_path / "config.yaml") == new
        assert not folder.last_checkpoint.exists()
        left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
        assert left == {"run.json", "config.yaml", "environment.json", "notes.md"}
    else:  # nothing was moved yet
        assert read_mapping(tmp_path / "config.yaml") == CONFIG
        assert folder.last_checkpoint.read_text() == "old"


def test_a_run_that_lost_its_configuration_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    opened(tmp_path, CONFIG)
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "metrics.jsonl").write_text("x")
    with pytest.raises(UserError, match=r"without its config\.yaml"):
        opened(tmp_path, CONFIG)
    assert (tmp_path / "metrics.jsonl").exists()


def test_a_run_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    opened(tmp_path, CONFIG)
    (tmp_path / "run.json").write_text('{"kind": "attention-transfer run", "format": 99}')
    with pytest.raises(UserError, match="is a run of format 99, and this version knows 1"):
        opened(tmp_path, CONFIG, overwrite=True)


def test_one_command_at_a_time(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, CONFIG, overwrite=False) as folder:
        for overwrite in (False, True):
            with pytest.raises(UserError, match=rf"another command \(process {os.getpid()} on "):
                opened(tmp_path, CONFIG, overwrite=overwrite)
        folder.write_json("summary.json", {})
        assert opened(tmp_path, CONFIG).finished  # what is finished can be read by anyone


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


def _full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_whole(path, "old")
    monkeypatch.setattr("os.fsync", _full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
