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
