"""Configuration files of anyone: bounded, and refused in a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attention_transfer import UserError
from attention_transfer.plain_yaml import MOST_BYTES, read_mapping

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(b)}: &{chr(b)} [{', '.join([f'*{chr(b - 1)}'] * 10)}]\n" for b in range(ord("b"), ord("k"))
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{chr(b)}: &{chr(b)}\n  <<: [{', '.join([f'*{chr(b - 1)}'] * 10)}]\n" for b in range(ord("b"), ord("k"))
)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a configuration, which has names with values"),
        (b"[1, 2]", "is not a configuration, which has names with values"),
        (b"1: x", "is not a configuration, which has names with values"),
        (b"a: 'x", r"is not readable YAML \(line"),
        (b"a: \xff\xfe", "is not readable YAML"),
        (b"a: \x00", "is not readable YAML"),
        (b"seed: " + b"9" * 5_000, "is not readable YAML"),
        (b"a: 2020-13-45", "is not readable YAML"),
        (b"a: !!python/object/apply:os.system [ls]", "is not readable YAML"),
        (b"a: b\n---\nc: d", "is not readable YAML"),
        (b"a: &a [*a]", "holds a value that is a part of itself"),
        (b"a: " + b"[" * 100 + b"]" * 100, "is nested more than 50 levels deep"),
        (b"a: " + b"[" * 100_000, "is nested deeper than a configuration may be"),
        (b"#" * (MOST_BYTES + 1), "is larger than a configuration may be"),
        (LAUGHS.encode(), "comes to more than 100,000 values"),
        (MERGES.encode(), "comes to more than 100,000 values"),
    ],
    ids=range(16),
)
def test_what_is_no_configuration_is_refused(content: bytes, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"^{file} {sentence}") as caught:
        read_mapping(file)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, what in (("", "a folder"), ("pipe", "no regular file"), ("none", "not there")):
        with pytest.raises(UserError, match=f"is {what}, where a configuration file is needed"):
            read_mapping(tmp_path / name)


def test_anchors_and_marks_of_an_encoding_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("\ufeffone: &x {a: 1}\ntwo: *x\nthree: {<<: *x, b: é}\n", encoding="utf-8")
    assert read_mapping(file) == {"one": {"a": 1}, "two": {"a": 1}, "three": {"a": 1, "b": "é"}}


BAD_TAGS = ["!!timestamp x", '!!int ""', "!!bool x", '!!float ""', "!!python/object:os.system x"]


@pytest.mark.parametrize("value", BAD_TAGS)
def test_a_value_that_is_not_of_its_tag_is_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"seed: {value}\n")
    with pytest.raises(UserError, match="is not readable YAML"):
        read_mapping(tmp_path / "c.yaml")
