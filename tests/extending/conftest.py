from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[[str], str]


@pytest.fixture
def installed(tmp_path: Path) -> Callable[..., Run]:
    """Puts one file of another package, with its entry point, on the path of new processes; gives what runs code there.

    A process of its own is what a user of that package has; nothing of it is left for the other tests.
    """

    def install(module: str, source: str, group: str, entry: str) -> Run:
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
