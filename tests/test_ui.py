"""What is printed is shown as it is."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from attention_transfer import cli, ui

NAME = "de[/x]mo [bold]:x: \x1b[2J"
SHOWN = "de[/x]mo [bold]:x: \\x1b[2J"


def shown(width: int, *things: object) -> str:
    file = io.StringIO()
    console = ui.Console(file=file, width=width)
    for thing in things:
        console.print(thing)
    return file.getvalue()


def test_brackets_and_codes_are_text_in_all_that_is_printed() -> None:
    table = Table(NAME, title=NAME)
    table.add_row(NAME)
    assert shown(80, NAME, table).count(SHOWN) == 4


def test_an_error_is_one_line_of_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    cli.print_error(NAME * 5)
    assert capsys.readouterr().err == f"error: {SHOWN * 5}\n"


@pytest.mark.parametrize("columns", [None, "80"])
def test_lines_and_tables_are_not_wrapped_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, columns: str | None
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    file = io.StringIO()
    monkeypatch.setattr(ui, "console", ui.Console(file=file))
    path = "/a path/with/many words/" * 20
    ui.show_line(f"done, in {path}")
    table = Table("run")
    table.add_row(path)
    ui.console.print(table)
    assert f"done, in {path}\n" in file.getvalue()
    assert f"│ {path} │" in file.getvalue()


def test_a_console_that_was_made_on_a_terminal_is_none_when_its_output_goes_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "80")
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", Terminal())
        console = ui.Console(stderr=True)
        assert console.width == 80
    table = Table("run")
    table.add_row("a/" * 200)
    console.print(table)
    assert f"│ {'a/' * 200} │" in capsys.readouterr().err


def test_lines_are_wrapped_by_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(ui, "console", ui.Console(file=file, width=50, force_terminal=True))
    ui.show_line("many words " * 10)
    assert all(line.strip().endswith(("many", "words")) for line in file.getvalue().splitlines())


def test_brackets_are_text_beside_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(ui, "console", ui.Console(file=file, force_terminal=True, width=120))
    with ui.bars(visible=True, note=True) as progress:
        progress.add_task("[/x]", total=1, note="[/y]")
    assert "[/x]" in file.getvalue()
    assert "[/y]" in file.getvalue()


def test_words_stay_whole_on_narrow_terminals() -> None:
    table = Table("name", "accuracy, %")
    table.add_row("distill", "88.8 ± 1.8")
    assert "88.8 ± 1.8" in shown(20, table)


def test_the_cursor_comes_back_only_to_terminals_and_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(number: int, data: bytes) -> None:
        raise OSError

    monkeypatch.setattr("os.write", gone)
    for terminal in (False, True):
        monkeypatch.setattr(ui, "console", ui.Console(stderr=True, force_terminal=terminal))
        ui.show_cursor()
