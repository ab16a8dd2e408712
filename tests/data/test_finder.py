"""The one rule of which files are pictures, for folders, patterns and what `predict` is given."""

from __future__ import annotations

import os
import socket
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from attention_transfer.data.finder import DEEPEST, Finder, as_text, path_on_disk
from attention_transfer.data.patterns import MOST, expand, match_files
from attention_transfer.errors import UserError
from attention_transfer.evaluation.image_files import find_images


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def below(folder: Path) -> tuple[list[str], dict[str, int]]:
    """The pictures below a folder, by their paths in it, and what was left out."""
    finder = Finder()
    (found,) = finder.find([folder])
    return [str(Path(path).relative_to(folder)) for path in found], dict(finder.left_out)


def test_pictures_are_told_by_their_suffixes_in_any_case_and_the_rest_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a.Png", "c/d.webp", "notes.txt", "more.TXT", "read me", "x.gif")
    assert below(tmp_path) == (["a.Png", "b.JPG", "c/d.webp"], {".txt": 2, "without a suffix": 1, ".gif": 1})


def test_what_is_hidden_or_of_a_system_is_not_looked_at(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", ".b.png", "._a.png", ".git/x.png", "c/.x/y.png", "Thumbs.db")
    touch(tmp_path, "@eaDir/a.png", "__MACOSX/a.png", "c/lost+found/a.png", "$RECYCLE.BIN/a.png", "c/@EADIR/a.png")
    assert below(tmp_path) == (["a.png"], {"hidden": 4, "of the system": 6})


def test_links_to_files_are_followed_and_broken_ones_counted(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.bin", "set/b.png")
    (tmp_path / "set/a.png").symlink_to(tmp_path / "elsewhere/a.bin")
    (tmp_path / "set/c.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "set/d.png").symlink_to(tmp_path / "set/d.png")
    assert below(tmp_path / "set") == (["a.png", "b.png"], {"broken link": 2})


def test_links_in_circles_add_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "set/a/1.png", "set/b/2.png", "outside/3.png", "outside/deep/4.png")
    for name, target in {"up": "set", "self": "set/a", "top": ".", "out": "outside", "again": "outside"}.items():
        (tmp_path / "set/a" / name).symlink_to(tmp_path / target)
    (tmp_path / "outside/back").symlink_to(tmp_path / "set")
    (tmp_path / "outside/deep/up").symlink_to(tmp_path / "outside")
    found, left_out = below(tmp_path / "set")
    assert [Path(path).name for path in found] == ["1.png", "3.png", "4.png", "2.png"]
    assert left_out == {"link to a folder that is searched anyway": 6}


def test_a_link_to_another_class_does_not_give_its_pictures_two_classes(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a/b").symlink_to(tmp_path / "b")
    found = Finder().find([tmp_path / "a", tmp_path / "b"])
    assert found == [[str(tmp_path / "a/1.png")], [str(tmp_path / "b/2.png")]]


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "d.png"))
        assert below(tmp_path) == (["a.png"], {"named pipe": 1, "device": 1, "socket": 1})


def test_folders_in_each_other_are_bounded(tmp_path: Path) -> None:
    inner = tmp_path
    for _ in range(DEEPEST + 2):
        inner = inner / "f"
        touch(inner, "a.png")
    found, left_out = below(tmp_path)
    assert len(found) == DEEPEST
    assert left_out == {f"folder more than {DEEPEST} deep": 1}


def test_names_are_compared_and_written_in_one_form() -> None:
    name = "café"
    assert as_text(unicodedata.normalize("NFD", name)) == as_text(name) == name
    assert as_text(os.fsdecode(b"caf\xe9")) == r"caf\xe9"


def test_a_written_path_may_differ_in_its_unicode_form(tmp_path: Path) -> None:
    decomposed = str(tmp_path / unicodedata.normalize("NFD", "café.png"))
    Path(decomposed).write_bytes(b"x")
    composed = unicodedata.normalize("NFC", decomposed)
    assert path_on_disk(composed) in (decomposed, composed)
    assert Path(path_on_disk(composed)).is_file()
    assert path_on_disk(str(tmp_path / "none.png")) == str(tmp_path / "none.png")


def test_patterns_follow_the_rule_and_no_circles(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/b/2.png", "a/.x/3.png", "@eaDir/4.png", "a/.5.png")
    (tmp_path / "a/up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "a/6.png")
    found, left_out = match_files(tmp_path / "**" / "*.png")
    assert [path.name for path in found] == ["1.png", "2.png"]
    assert left_out == Counter({"hidden": 2, "of the system": 1, "named pipe": 1})
    assert [path.name for path in match_files(tmp_path / "a" / "**")[0]] == ["1.png", "2.png"]


def test_hidden_parts_that_a_pattern_begins_with_are_meant(tmp_path: Path) -> None:
    touch(tmp_path, ".cache/a.png")
    assert [path.name for path in match_files(tmp_path / ".cache" / "*.png")[0]] == ["a.png"]


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("x-{0..999999999}.tar", f"names more than {MOST:,} files; name fewer"),
        (f"x-{{0..{'9' * 5000}}}.tar", f"names more than {MOST:,} files; name fewer"),
        ("{0..999}-{0..999}-{0..999}.tar", f"names 1,000,000,000 files; name at most {MOST:,}"),
        ("x-{5..3}.tar", "counts from 5 down to 3; write the smaller number first"),
    ],
)
def test_braces_are_counted_before_names_are_made(pattern: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        expand(Path(pattern))
    assert len(str(caught.value)) < 400


def test_predict_finds_what_class_folders_do_and_says_what_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a/1.png", "a/notes.txt", "a/@eaDir/1.png", "b/2.png")
    (tmp_path / "a/up").symlink_to(tmp_path)
    caplog.set_level("INFO", "attention_transfer")
    found = find_images([str(tmp_path / "a"), str(tmp_path / "**" / "*.png")])
    assert [Path(file.path).name for file in found] == ["1.png", "2.png"]
    assert "/a: not used: 1 .txt, 1 link to a folder that is searched anyway, 1 of the system" in caplog.text
    touch(tmp_path, "empty/notes.txt")
    with pytest.raises(UserError, match=r"empty holds no images \(jpg, .*\), but 1 .txt; name another"):
        find_images([str(tmp_path / "empty")])
