"""What is printed where nobody reads, where it can't be written, and in letters that a terminal has not.

Commands are played by a small one that prints and then writes a file, in a process of its own that loads nothing heavy.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attention_transfer.streams import ERRORS, readable

PLAYED = r"""
import logging, sys, types
from pathlib import Path
from attention_transfer import cli

def work():
    from attention_transfer.ui import Console, bars, console
    log = logging.getLogger("attention_transfer")
    with bars(visible=True) as progress:
        task = progress.add_task("working", total=300)
        for step in range(300):
            progress.advance(task)
            log.info("step %d in [/b] ros\u00e9 \u96db\u83ca \udcff \u00d7 \u2026", step)
    console.print("a table")
    for line in range(300):
        print("report", line, "\u96db\u83ca")
    Console().print("the end")
    Path("done").write_text("done")

parser = types.ModuleType("attention_transfer.parser")
VERBS = {"train": work, "data": work, "broken": lambda: [][1]}
parser.parse = lambda words: (types.SimpleNamespace(run=lambda config: VERBS[words[0]]()), None)
sys.modules["attention_transfer.parser"] = parser
cli.main()
"""


def play(folder: Path, *words: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The played command, with redirections in the words of a shell."""
    line = f'exec "$0" -c "$CODE" {" ".join(words)} {shell}'
    env = {**os.environ, "CODE": PLAYED, **environment}
    return subprocess.run(
        ["sh", "-c", line, sys.executable], cwd=folder, env=env, capture_output=True, timeout=60, check=False
    )


@pytest.mark.parametrize("shell", ["2>/dev/full", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_work_is_done_where_nothing_can_be_printed(shell: str, tmp_path: Path) -> None:
    done = play(tmp_path, "train", shell=shell)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert (tmp_path / "done").read_text() == "done"


def test_work_is_done_where_the_reader_has_gone(tmp_path: Path) -> None:
    for shell in ("2>&1 | head -1", "2>&1 >/dev/null | head -1", "| head -1"):
        done = play(tmp_path, "train", shell=f"{shell}; exit ${{PIPESTATUS:-0}}")
        assert b"Traceback" not in done.stderr + done.stdout
        assert b"Exception ignored" not in done.stderr + done.stdout
        (tmp_path / "done").unlink()  # and so it is there


def test_a_report_that_is_lost_is_no_success(tmp_path: Path) -> None:
    done = play(tmp_path, "data", shell=">/dev/full")
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[-1] == (
        "error: standard output can't be written (No space left on device); fix that, then give the command again"
    )
    assert play(tmp_path, "data", shell=">&-").returncode == 0  # nobody wanted it


def test_no_file_gets_the_number_of_a_stream_that_is_closed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from attention_transfer.streams import guard; guard(); "
        "file = open('kept', 'wb'); assert file.fileno() > 2; os.write(2, b'of a library'); print('x'); file.close()"
    )
    line = 'exec "$0" -c "$1" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", line, sys.executable, code], cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "kept").read_bytes() == b""


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_letters_that_a_terminal_has_not_are_written_in_those_it_has(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = play(tmp_path, "data", **environment)
    assert done.returncode == 0
    assert b"step 299 in [/b] ros\\xe9 \\u96db\\u83ca \\xff x ..." in done.stderr.replace(b"\n", b" ").replace(
        b"  ", b" "
    )
    assert b"report 299 \\u96db\\u83ca" in done.stdout
    (done.stdout + done.stderr).decode("ascii")


def test_utf_8_shows_all_that_it_can(tmp_path: Path) -> None:
    done = play(tmp_path, "data", PYTHONIOENCODING="utf-8")
    assert "step 299 in [/b] rosé 雛菊 \\xff × …" in done.stderr.decode()


def test_an_error_that_nobody_expects_is_said_to_be_a_bug_and_kept(tmp_path: Path) -> None:
    done = play(tmp_path, "broken", TMPDIR=str(tmp_path))
    assert done.returncode == 1
    said = done.stderr.decode().strip()
    assert said.startswith("error: this is a bug of attention-transfer (IndexError: list index out of range)")
    assert len(said.splitlines()) == 1
    (kept,) = tmp_path.glob("attention-transfer-*.txt")
    assert said.endswith(str(kept))
    assert "Traceback (most recent call last)" in kept.read_text()


LOADING = """
import sys, time
from attention_transfer import cli

class Slow:
    def find_spec(self, name, *rest):
        if name == "attention_transfer.parser":
            print("loading", flush=True)
            try:
                time.sleep(30)
            except BaseException:  # as a library may do it
                time.sleep(30)

sys.meta_path.insert(0, Slow())
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_still_loading_stops_at_once(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LOADING, "presets"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, "stopped\n")


def test_the_command_line_can_be_stopped_before_it_loads_anything_heavy() -> None:
    code = "import sys; from attention_transfer import cli; print({'torch', 'numpy', 'rich'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rosé 雛菊 [/b]\n\t", "rosé 雛菊 [/b]\n\t"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("\x1b[2J\r\x00", "\\x1b[2J\\x0d\\x00"),
        ("\ud800", "\\ud800"),
    ],
)
def test_readable(text: str, shown: str) -> None:
    assert readable(text) == shown


def test_only_text_is_made_readable() -> None:
    assert "3 × ±… é 😀".encode("ascii", ERRORS) == b"3 x +/-... \\xe9 \\U0001f600"
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", ERRORS)


def test_streams_that_were_replaced_are_left_alone(capsys: Any) -> None:
    from attention_transfer.streams import guard

    before = sys.stdout, sys.stderr
    guard()
    assert (sys.stdout, sys.stderr) == before
