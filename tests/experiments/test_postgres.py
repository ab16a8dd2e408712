"""Two processes share a study in PostgreSQL, where a server is installed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

import pytest

from attention_transfer.experiments.studies import Study, turn
from attention_transfer.experiments.workers import Computed, in_processes, work

NAMES = [f"run-{n}" for n in range(8)]


def _programs() -> Path | None:
    """Where the server and initdb are; Debian's packages keep them away from the commands of users."""
    found = shutil.which("postgres")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


PROGRAMS = _programs()
pytestmark = [
    pytest.mark.skipif(PROGRAMS is None, reason="PostgreSQL's server is not installed"),
    pytest.mark.skipif(
        find_spec("psycopg") is None, reason="psycopg, which pip install -e '.[dev]' brings, is not there"
    ),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a database of its own; PostgreSQL refuses to run as root, so there it runs as nobody."""
    assert PROGRAMS is not None
    initdb, postgres = str(PROGRAMS / "initdb"), str(PROGRAMS / "postgres")
    folder = Path(mkdtemp(prefix="postgres-"))
    user = "nobody" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data, quiet = str(folder / "data"), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([initdb, "-D", data, "-U", "study", "-A", "trust"], check=True, user=user, cwd=folder, **quiet)  # type: ignore[call-overload]
    words = [postgres, "-D", data, "-p", str(port), "-k", str(folder), "-h", "127.0.0.1", "-c", "fsync=off"]
    process = subprocess.Popen(words, user=user, cwd=folder, **quiet)  # type: ignore[call-overload]
    try:
        for _ in range(300):
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"postgresql+psycopg://study@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # which waits for no connection
        process.wait()
        shutil.rmtree(folder)


def _worker(folder: Path, url: str) -> None:
    def compute(name: str) -> Computed:
        with (folder / name).open("a") as file:
            file.write("x")
        time.sleep(0.2)
        return float(name[-1]), {"name": name}

    work(Study.there(folder, storage=url), NAMES, compute, raises=False)


@pytest.mark.usefixtures("warm_workers")
def test_two_processes_share_a_study(server: str, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    with turn(folder):
        study = Study.open(folder, {"epochs": 2}, storage=server)
    study.add(NAMES)
    workers = set[str]()

    def look() -> int | None:
        known = study.entries().values()
        workers.update(entry.worker for entry in known if entry.worker)
        ended = sum(entry.ended for entry in known)
        return None if ended == len(NAMES) else ended

    in_processes(2, _worker, (folder, server), folder, look)
    assert {name: entry.result for name, entry in study.entries().items()} == {name: {"name": name} for name in NAMES}
    assert [(folder / name).read_text() for name in NAMES] == ["x"] * len(NAMES)
    assert 1 <= len(workers) <= 2
