"""The wheel, built and used by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("hatchling")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel holds; what it depends on is the interpreter's own."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder / "site"),
    ]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return folder / "site"


def used(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of the wheel alone, in a folder where no source is."""
    return subprocess.run(
        [sys.executable, "-m", "attention_transfer", *words],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path[1:]])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_says_its_version_and_its_presets(installed: Path) -> None:
    assert used(installed, "--version").stdout.startswith("attention-transfer ")
    assert "gta-transmix" in used(installed, "presets").stdout


def test_the_published_recipes_are_in_it(installed: Path) -> None:
    done = used(installed, "train", "--config", "recipe:gta/cub-15", "--seed", "3", "--print_config")
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert (shown["preset"], shown["fraction"], shown["seed"]) == ("gta", 0.15, 3)
    assert shown["rules"][0]["init_args"]["weight"] == 1.2
    recipes = {str(path.relative_to(ROOT / "recipes")) for path in (ROOT / "recipes").rglob("*.yaml")}
    inside = installed / "attention_transfer" / "recipes"
    assert {str(path.relative_to(inside)) for path in inside.rglob("*.yaml")} == recipes


def test_a_recipe_that_there_is_not_is_refused_with_the_nearest(installed: Path) -> None:
    done = used(installed, "train", "--config", "recipe:gta/cub-16")
    assert (done.returncode, done.stderr) == (
        2,
        "error: there is no recipe 'gta/cub-16'; did you mean 'gta/cub-15'?\n",
    )
