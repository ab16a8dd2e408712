"""Packages of other people's, of one file each, that register by entry points."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Run]:
    """Writes a package of one file that registers names, and gives what runs the command line beside it."""

    def make(name: str, source: str, **entry_points: str) -> Run:
        site, info = tmp_path / "site", tmp_path / "site" / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        groups = "".join(f"[attention_transfer.{group}]\n{entry}\n" for group, entry in entry_points.items())
        (info / "entry_points.txt").write_text(groups)
        path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "attention_transfer", *words],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )

        return run

    return make


@pytest.fixture
def installed(tmp_path: Path) -> Callable[..., Callable[[str], str]]:
    """Puts one file of another package, with its entry point, on the path of new processes; gives what runs code there.

    A process of its own is what a user of that package has; nothing of it is left for the other tests.
    """

    def install(module: str, source: str, group: str, entry: str) -> Callable[[str], str]:
        site = tmp_path / "site"
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(source, encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n", encoding="utf-8")
        path = os.pathsep.join([str(site), *filter(None, sys.path)])

        def run(code: str) -> str:
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        return run

    return install
