from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from attention_transfer.data import Split
from attention_transfer.data.tables import load_table
from attention_transfer.errors import UserError, UserErrors

Write = Callable[..., list[Path]]
Files = Callable[[Split], list[Path]]


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Writes a table of these lines."""

    def build(*lines: str, name: str = "pets.csv", encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding=encoding)
        return path

    return build


@pytest.fixture
def rows(write: Write, tmp_path: Path) -> list[str]:
    """Lines for ten pictures of cats and ten of dogs, paths relative to the table."""
    paths = {name: write(f"pictures/{name}", 10) for name in ("cat", "dog")}
    return [f"{path.relative_to(tmp_path)},{name}" for name, found in paths.items() for path in found]


def test_a_table_gives_images_and_classes(
    rows: list[str], table: Callable[..., Path], files: Files, tmp_path: Path
) -> None:
    splits = load_table(table("path,label", *rows))
    assert (splits.name, splits.classes) == ("pets", ("cat", "dog"))
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [12, 4, 4]
    for split in (splits.train, splits.validation, splits.test):
        assert [path.parent.name for path in files(split)] == [splits.classes[label] for label in split.labels]
        assert all(path.is_relative_to(tmp_path / "pictures") for path in files(split))


@pytest.mark.parametrize("header", ["File,Class", "image,category", "filename , LABEL"])
def test_columns_have_several_names_in_any_case_and_order(
    header: str, rows: list[str], table: Callable[..., Path]
) -> None:
    assert len(load_table(table(header, *rows)).train) == 12
    first, second = header.split(",")
    turned = [",".join(reversed(row.split(","))) for row in rows]
    assert load_table(table(f"{second},{first}", *turned)).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("separator", "name", "encoding"),
    [("\t", "pets.tsv", "utf-8"), (";", "pets.csv", "utf-8"), (",", "pets.csv", "utf-8-sig"), (",", "p.CSV", "utf-8")],
)
def test_tabs_semicolons_and_a_byte_order_mark_are_read(
    separator: str, name: str, encoding: str, rows: list[str], table: Callable[..., Path]
) -> None:
    lines = [line.replace(",", separator) for line in ["path,label", *rows]]
    assert len(load_table(table(*lines, "", name=name, encoding=encoding)).train) == 12


def test_given_splits_are_used(rows: list[str], table: Callable[..., Path], files: Files) -> None:
    names = ["train", "TRAIN", "val", "valid", "test"] * 4
    lines = [f"{row},{name}" for row, name in zip(rows, names, strict=True)]
    splits = load_table(table("path,label,split", *lines))
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [8, 8, 4]
    assert [path.name for path in files(splits.test)] == ["004.png", "009.png"] * 2


def test_classes_that_are_numbers_are_in_their_order(rows: list[str], table: Callable[..., Path]) -> None:
    lines = [f"{row.split(',')[0]},{(2, 10, 1)[number % 3]}" for number, row in enumerate(rows)]
    assert load_table(table("path,label", *lines)).classes == ("1", "2", "10")


def test_every_mistake_is_said_at_once_with_its_lines(rows: list[str], table: Callable[..., Path]) -> None:
    lines = [f"{row},train" for row in rows]
    lines += [f"nothing{number}.png,cat,train" for number in range(7)]
    lines += [f"{rows[0].split(',')[0]},,train", f"{rows[1]},exam"]
    with pytest.raises(UserErrors) as caught:
        load_table(table("path,label,split", *lines))
    text = str(caught.value)
    assert "7 of 29 rows name files that are not there (line 22, line 23, line 24, line 25, line 26 and 2 more)" in text
    assert "1 of 29 rows have no label (line 29)" in text
    assert "1 of 29 rows have an unknown split (line 30); write train, val or test" in text


def test_an_image_in_two_splits_or_classes_is_refused(rows: list[str], table: Callable[..., Path]) -> None:
    lines = [f"{row},train" for row in rows]
    lines += [f"pictures/../{rows[4]},test", f"{rows[2].split(',')[0]},dog,train"]
    with pytest.raises(UserErrors) as caught:
        load_table(table("path,label,split", *lines))
    assert "rows put an image into another split too (line 22)" in str(caught.value)
    assert "rows put an image into another class too (line 23)" in str(caught.value)


def test_a_repeated_row_is_taken_once_lest_it_comes_to_be_in_two_splits(
    rows: list[str], table: Callable[..., Path], files: Files
) -> None:
    splits = load_table(table("path,label", *rows, *rows[:3]))
    found = [path for split in (splits.train, splits.validation, splits.test) for path in files(split)]
    assert len(found) == len(set(found)) == 20
    assert any("Rows that repeat an image are left out: 3" in note for note in splits.notes)


def test_missing_and_doubled_columns_are_refused(rows: list[str], table: Callable[..., Path]) -> None:
    with pytest.raises(UserErrors, match=r"no column path \(or file, image, filename\), but 'a', 'b'.*\n.*no column l"):
        load_table(table("a,b", *rows))
    with pytest.raises(UserError, match="2 columns for the path: 'path', 'file'; keep one"):
        load_table(table("path,file,label", "x,x,cat"))
    with pytest.raises(UserError, match="a column 'spilt'; did you mean 'split'"):
        load_table(table("path,label,spilt", *rows))


def test_further_columns_are_said_not_to_be_used(rows: list[str], table: Callable[..., Path]) -> None:
    splits = load_table(table("path,label,weight", *[f"{row},3" for row in rows]))
    assert any("Columns of pets.csv that are not used: 'weight'" in note for note in splits.notes)


def test_tables_without_rows_classes_or_training_are_refused(rows: list[str], table: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="lists no images"):
        load_table(table("path,label"))
    with pytest.raises(UserError, match="nothing in its first line; write the names of the columns"):
        load_table(table(""))
    with pytest.raises(UserError, match="rows have no label") as caught:
        load_table(table("path,label", *[row.replace(",", ";") for row in rows]))
    assert "single class" not in str(caught.value)
    with pytest.raises(UserError, match="a single class, 'cat'"):
        load_table(table("path,label", *rows[:5]))
    with pytest.raises(UserError, match="no row of split train"):
        load_table(table("path,label,split", *[f"{row},test" for row in rows]))
    with pytest.raises(UserError, match="test split has classes that train lacks: 'dog'"):
        load_table(table("path,label,split", f"{rows[0]},train", f"{rows[1]},train", f"{rows[15]},test"))


def test_a_file_that_is_no_table_is_refused(table: Callable[..., Path]) -> None:
    path = table("path,label")
    path.write_bytes(b"path,label\n\xff\xfe\x00caf\xe9,x\n")
    with pytest.raises(UserError, match="is not a readable table"):
        load_table(path)


def test_paths_may_be_absolute(rows: list[str], table: Callable[..., Path], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = table("path,label", *[f"{tmp_path}/{row}" for row in rows])
    assert len(load_table(Path(shutil.move(path, elsewhere))).train) == 12


def test_damaged_images_are_left_out(rows: list[str], table: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "pictures/cat/002.png").write_bytes(b"")
    path = table("path,label", *rows)
    assert load_table(path).skipped == {str(tmp_path / "pictures/cat/002.png"): "is empty"}
    with pytest.raises(UserError, match=r"002\.png is empty"):
        load_table(path, strict=True)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["cat", "dog", "cat|dog"], r"1 labels seem to hold several classes \(the first: 'cat\|dog'\)"),
        (["cat", "dog", "cat; dog"], "seem to hold several classes"),
        (["cat", "dog", '"cat, dog"'], "seem to hold several classes"),
        (["['cat' 'dog']", "['dog']"], "seem to hold several classes"),
        (["1", "2", "1 2"], "seem to hold several classes"),
        (["0.37", "1.5", "2"], "numbers that are not whole .*measurements are not supported"),
        (["9" * 5000, "1"], r"1 labels have more than 255 characters \(the first: 9{40}…\)"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    labels: list[str], sentence: str, rows: list[str], table: Callable[..., Path]
) -> None:
    lines = [f"{row.split(',')[0]},{labels[number % len(labels)]}" for number, row in enumerate(rows)]
    with pytest.raises(UserError, match=sentence):
        load_table(table("path,label", *lines))


@pytest.mark.parametrize(
    "labels", [["tench, Tinca tinca", "crane, bird", "crane"], ["1.0", "2.0"], ["(wild) boar (male)", "a+b", "a & b"]]
)
def test_unusual_names_are_classes(labels: list[str], rows: list[str], table: Callable[..., Path]) -> None:
    lines = [f'{row.split(",")[0]},"{labels[number % len(labels)]}"' for number, row in enumerate(rows)]
    assert set(load_table(table("path,label", *lines)).classes) == set(labels)


def test_rows_with_hidden_files_are_left_out_and_counted(
    rows: list[str], table: Callable[..., Path], tmp_path: Path
) -> None:
    more = ["pictures/cat/._000.png,cat", "pictures/@eaDir/000.png,cat"]
    splits = load_table(table("path,label", *rows, *more))
    assert sum(map(len, (splits.train, splits.validation, splits.test))) == 20
    assert any("left out by their files' names: 1 hidden, 1 of the system" in note for note in splits.notes)


def test_a_table_that_is_a_pipe_or_too_large_is_refused(table: Callable[..., Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="it is no regular file"):
        load_table(tmp_path / "pipe.csv")
    path = table("path,label")
    with path.open("r+b") as file:
        file.truncate(2**30 + 1)
    with pytest.raises(UserError, match="it has 1,073,741,825 bytes, more than"):
        load_table(path)
