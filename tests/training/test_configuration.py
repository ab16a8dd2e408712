from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from attention_transfer.errors import UserError
from attention_transfer.training import read_config


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder / f"{next(iter(files))}.yaml"


def test_a_file_that_extends_nothing_is_itself(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, a={"preset": "copy", "shots": 5})) == {"preset": "copy", "shots": 5}


def test_groups_are_joined_and_all_else_is_replaced(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        c={"extends": "b.yaml", "recipe": {"lr": 3}, "rules": [1]},
        b={"extends": "a.yaml", "recipe": {"lr": 2, "mixup": 0.5}, "seed": 1},
        a={"recipe": {"lr": 1, "epochs": 7}, "rules": [2, 3], "data": "digits"},
    )
    expected = {"recipe": {"lr": 3, "mixup": 0.5, "epochs": 7}, "rules": [1], "seed": 1, "data": "digits"}
    assert read_config(path) == expected


def test_what_is_extended_lies_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, a={"seed": 4})
    path = write(tmp_path / "deep", b={"extends": "../a.yaml"})
    monkeypatch.chdir(tmp_path / "deep")
    assert read_config(path) == {"seed": 4}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": {"extends": "b.yaml"}}, r"there is no configuration file .*b\.yaml, which .*a\.yaml extends"),
        ({"a": {"extends": "a.yaml"}}, r"a\.yaml extends itself, by way of a\.yaml; end the circle"),
        ({"a": {"extends": "b.yaml"}, "b": {"extends": "a.yaml"}}, r"by way of a\.yaml and b\.yaml"),
        ({"a": {"extends": ["b.yaml", "c.yaml"]}}, r"name one file"),
        ({"a": [1, 2]}, r"a\.yaml is not a configuration"),
    ],
)
def test_what_is_wrong_is_said(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_config(write(tmp_path, **files))
