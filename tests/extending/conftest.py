"""Packages of other people's, of one file each, that register by entry points."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.warm import Python

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def write_package(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Writes a package of one file that registers names; gives the environment of what finds it."""

    def write(name: str, source: str, **entry_points: str) -> dict[str, str]:
        site, info = tmp_path / "site", tmp_path / "site" / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        groups = "".join(f"[attention_transfer.{group}]\n{entry}\n" for group, entry in entry_points.items())
        (info / "entry_points.txt").write_text(groups)
        path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
        return {**os.environ, "PYTHONPATH": path}

    return write


@pytest.fixture
def package(tmp_path: Path, write_package: Callable[..., dict[str, str]]) -> Callable[..., Run]:
    """Writes a package of one file that registers names, and gives what runs the command line beside it.

    A process of its own is what a user of that package has; nothing of it is left for the other tests.
    """

    def make(name: str, source: str, **entry_points: str) -> Run:
        env = write_package(name, source, **entry_points)

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "attention_transfer", *words]
            return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

        return run

    return make


@pytest.fixture
def warm_package(tmp_path: Path, write_package: Callable[..., dict[str, str]], python: Python) -> Callable[..., Run]:
    """As `package`, for words that load torch."""

    def make(name: str, source: str, **entry_points: str) -> Run:
        env = write_package(name, source, **entry_points)
        return lambda *words: python("-m", "attention_transfer", *words, cwd=tmp_path, env=env)

    return make


@pytest.fixture
def installed(
    tmp_path: Path, write_package: Callable[..., dict[str, str]], python: Python
) -> Callable[..., Callable[[str], str]]:
    """Writes such a package, and gives what runs code beside it, which loads torch."""

    def install(name: str, source: str, **entry_points: str) -> Callable[[str], str]:
        env = write_package(name, source, **entry_points)

        def run(code: str) -> str:
            done = python("-c", code, cwd=tmp_path, env=env)
            assert done.returncode == 0, done.stderr
            return done.stdout

        return run

    return install
