"""A data layout of another package: one file, registered by an entry point."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attention_transfer import inspect_data
from attention_transfer.data import find_source, labelled_subset, load_data
from attention_transfer.data.layouts import layouts
from attention_transfer.errors import UserError

LEAVES = """
from pathlib import Path

import numpy as np

from attention_transfer.data import FileImages, Split
from attention_transfer.data.layouts import Layout, Published


def find(path: Path) -> Path | None:
    return path if (path / "leaves.txt").is_file() else None


def read(home: Path) -> Published:
    rows = [line.split() for line in (home / "leaves.txt").read_text().splitlines()]
    classes = sorted({species for _, species, _ in rows})
    parts = {}
    for part in ("train", "test"):
        chosen = [(home / name, classes.index(species)) for name, species, of in rows if of == part]
        labels = np.array([label for _, label in chosen], dtype=np.int64)
        parts[part] = Split(FileImages(path for path, _ in chosen), labels)
    return Published(classes, parts, ["Leaves lie on white paper."])


LAYOUT = Layout(name="leaves", title="Leaves of the Park", find=find, read=read)
"""


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that is installed in a folder of its own; entry points are lines in its dist-info."""
    site = tmp_path / "site"
    info = site / "park-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "park.py").write_text(LEAVES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: park\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[attention_transfer.layouts]\nleaves = park:LAYOUT\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield info / "entry_points.txt"
    sys.modules.pop("park", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve leaves of two species: five to learn from, one to test with."""
    home, lines = tmp_path / "leaves", []
    home.mkdir()
    for number in range(12):
        name, species = f"{number}.png", ("oak", "elm")[number % 2]
        Image.fromarray(np.full((8, 8, 3), 20 * number, dtype=np.uint8)).save(home / name)
        lines.append(f"{name} {species} {'test' if number < 2 else 'train'}\n")
    (home / "leaves.txt").write_text("".join(lines))
    return home


def test_a_registered_layout_is_listed_found_loaded_and_cut(register: Path, folder: Path) -> None:
    assert layouts()["leaves"].title == "Leaves of the Park"
    assert find_source(str(folder)).title == "Leaves of the Park"
    splits = load_data(str(folder))
    assert (splits.name, splits.classes) == ("leaves", ("elm", "oak"))
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [8, 2, 2]
    assert splits.notes[0] == "Leaves lie on white paper."
    chosen = labelled_subset(splits.train.labels, shots=2)
    assert splits.train.take(chosen).labels.tolist().count(0) == 2
    assert inspect_data(str(folder)).kind == "Leaves of the Park"


def test_damage_is_found_in_it_as_in_any_other(register: Path, folder: Path) -> None:
    (folder / "4.png").write_bytes(b"no image")
    assert [Path(name).name for name in load_data(str(folder)).skipped] == ["4.png"]
    with pytest.raises(UserError, match=r"4\.png is not an image"):
        load_data(str(folder), strict=True)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("leaves = park:FIND", "the layout park:FIND can't be loaded .*; uninstall it or update it"),
        ("leaves = park:find", "park:find is registered as a layout, but is no Layout"),
        ("a = park:LAYOUT\nb = park:LAYOUT", "park:LAYOUT registers a second layout called 'leaves'"),
    ],
)
def test_what_is_wrong_with_a_registration_is_said(line: str, sentence: str, register: Path, folder: Path) -> None:
    register.write_text(f"[attention_transfer.layouts]\n{line}\n")
    importlib.invalidate_caches()
    with pytest.raises(UserError, match=sentence):
        load_data(str(folder))
