"""One command at a time in a folder."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from attention_transfer.errors import UserError
from attention_transfer.locking import locked

HOLDING = """
import sys, time
from pathlib import Path
from attention_transfer.locking import locked
with locked(Path(sys.argv[1]), Path("run")):
    print("held", flush=True)
    time.sleep(100)
"""


def test_the_second_is_told_who_has_it_and_a_dead_process_has_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock = tmp_path / "folder" / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(lock)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        said = (
            rf"run is being written by another command \(process {other.pid} on {socket.gethostname()}, since 20\d\d-"
        )
        with pytest.raises(UserError, match=said), locked(lock, Path("run")):
            pass
        assert lock.exists()  # still the other's
        other.kill()
    with caplog.at_level("INFO"), locked(lock, Path("run")):
        assert re.search(rf"run: taken over from process {other.pid} on .* is gone", caplog.text)
    assert not lock.exists()


def test_it_is_held_in_one_process_too_and_free_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock, tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} "), locked(lock, tmp_path):
        pass
    with pytest.raises(KeyboardInterrupt), locked(lock, tmp_path):
        raise KeyboardInterrupt
    with locked(lock, tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_forked_meanwhile_does_not_keep_it(tmp_path: Path) -> None:
    """As those that load images: they may outlive the training by seconds."""
    lock = tmp_path / "lock"
    ready, told = os.pipe()
    with locked(lock, tmp_path):
        child = os.fork()
        if child == 0:
            os.write(told, b"x")
            signal.pause()
            os._exit(0)
        os.read(ready, 1)
    try:
        with locked(lock, tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_where_there_are_no_locks_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    with locked(tmp_path / "lock", Path("run")):
        assert "run: no locks here (Function not implemented), so nothing keeps a second command out" in caplog.text
