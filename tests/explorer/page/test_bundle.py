"""The module that ships is the one that the sources build."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[3] / "explorer"
BUNDLE = "page.js"


def bundle() -> str:
    return files("attention_transfer.explorer").joinpath(BUNDLE).read_text(encoding="utf-8")


def hash_of(folder: Path) -> str:
    """As explorer/build.mjs computes it."""
    names = ["build.mjs", "package.json", "style.css", "tsconfig.json"]
    names += [f"src/{path.name}" for path in (folder / "src").iterdir()]
    digest = hashlib.sha256()
    for name in sorted(names):
        text = (folder / name).read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{name}\n".encode() + text)
    return digest.hexdigest()


def test_the_bundle_was_built_from_these_sources() -> None:
    first = bundle().partition("\n")[0]
    assert hash_of(SOURCES) in first, "run `npm install && npm run build` in explorer/"


def test_another_source_has_another_hash(tmp_path: Path) -> None:
    shutil.copytree(SOURCES, tmp_path / "copy", ignore=shutil.ignore_patterns("node_modules"))
    assert hash_of(tmp_path / "copy") == hash_of(SOURCES)
    (tmp_path / "copy" / "src" / "maps.ts").write_text("")
    assert hash_of(tmp_path / "copy") != hash_of(SOURCES)


def test_the_bundle_is_one_small_module_that_a_page_can_hold() -> None:
    assert len(bundle().encode()) < 150_000
    assert "</script" not in bundle().lower()
    assert "https://" not in bundle()


@pytest.mark.skipif(not (SOURCES / "node_modules").is_dir(), reason="npm install has not been run in explorer/")
def test_a_build_gives_the_same_bytes_and_the_sources_pass_their_checks(tmp_path: Path) -> None:
    copy = tmp_path / "explorer"
    (tmp_path / "src" / "attention_transfer" / "explorer").mkdir(parents=True)
    shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("node_modules"))
    (copy / "node_modules").symlink_to(SOURCES / "node_modules")
    for script in ("check", "build"):
        subprocess.run(["npm", "run", script], cwd=copy, check=True, capture_output=True)
    assert (tmp_path / "src" / "attention_transfer" / "explorer" / BUNDLE).read_text(encoding="utf-8") == bundle()
