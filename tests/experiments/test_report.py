"""The page of a comparison, as a browser has it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from attention_transfer import UserError
from attention_transfer.experiments.findings import findings
from attention_transfer.experiments.report import write_report
from attention_transfer.experiments.results import markdown
from attention_transfer.experiments.rows import Row, amount_of

CHROMIUM = Path("/usr/bin/chromium")
MEANS = {"scratch": 0.45, "finetune": 0.70, "gta": 0.73}


def row(folder: Path, preset: str, labels: str, seed: int, accuracy: float) -> Row:
    run = folder / "runs" / f"{preset} {labels}-seed{seed}".replace(" ", "_")
    run.mkdir(parents=True, exist_ok=True)
    recorded = {"python": "3.12.1", "device": "cpu", "command": ["attention-transfer", "compare", "--out", "a b"]}
    (run / "environment.json").write_text(json.dumps(recorded))
    return Row(preset, labels, seed, 200, accuracy, 0.9, 0.1, accuracy, 3, 200, 40.0, str(run))


def rows(folder: Path) -> list[Row]:
    """Three methods and six seeds with two amounts of labels, and a weight that takes three values."""
    noise = np.random.default_rng(0).normal(0, 0.01, (6, 9))
    found = []
    for seed, own in enumerate(noise):
        for i, (name, mean) in enumerate(MEANS.items()):
            found.append(row(folder, name, "5 labels a class", seed, mean - 0.2 + own[i]))
            found.append(row(folder, name, "20 labels a class", seed, mean + own[3 + i]))
        for i, weight in enumerate((0.02, 0.1, 0.5)):
            found.append(row(folder, "gta", f"20 labels a class, rules.weight {weight}", seed, 0.7 + own[6 + i]))
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    Image.new("RGB", (300, 120), "white").save(folder / "attention-3.png")
    picture = [folder / "attention-3.png"]
    return write_report(folder, rows(folder), picture, teacher="vit", teacher_looks=None, margin=0.01)


NOISY = {
    "scratch": [14.0, 35.6, 22.2, 19.6, 18.9, 16.2],
    "finetune": [50.9, 46.0, 50.7, 54.4, 54.4, 49.8],
    "gta": [50.7, 48.7, 48.0, 52.0, 52.9, 52.0],
    "copy": [39.1, 39.1, 36.4, 37.3, 43.6, 40.7],
    "distill": [32.7, 36.7, 34.4, 38.9, 33.1, 38.0],
    "gta-transmix": [47.8, 50.4, 49.8, 53.6, 51.1, 48.2],
    "linear-probe": [31.8, 25.1, 32.2, 32.7, 34.7, 30.7],
}
"""Test accuracy, %, of six seeds with 5 labels a class; scratch is 30 points behind, and varies."""


def test_nobody_leads_who_is_said_to_be_worse(tmp_path: Path) -> None:
    found = [
        row(tmp_path, name, "5 labels a class", seed, value / 100)
        for name, values in NOISY.items()
        for seed, value in enumerate(values)
    ]
    (finding,) = findings(found)
    worse = {name for name, difference in finding.differences.items() if difference.verdict == "worse"}
    assert worse == {"scratch", "copy", "distill", "linear-probe"}
    assert {*finding.leaders} == {"finetune", "gta", "gta-transmix"}


def test_the_page_says_what_was_found(page: Path) -> None:
    text = page.read_text()
    assert "<strong>20 labels a class:</strong> gta leads." in text
    assert re.search(
        r"<li>gta is better than finetune: \+\d\.\d points \(\d\.\d to \d\.\d\), p = 0\.031, six seeds</li>", text
    )
    assert re.search(r"<li>gta with 20 labels a class is as good as finetune with more than 20 labels a class", text)
    assert "Test accuracy over rules.weight: mean over seeds" in text
    assert "within ±1 points counts as none" in text
    assert "attention-transfer compare --out &#39;a b&#39;" in text  # as it can be typed again


def test_every_number_leads_to_its_runs_and_every_run_to_its_folder(page: Path) -> None:
    text = page.read_text()
    ids = set(re.findall(r'<tr id="([^"]+)"', text))
    anchors = re.findall(r'href="#([^"]+)">\d', text)
    assert len(anchors) == 3 + 3 + 3
    assert set(anchors) == ids
    folders = re.findall(r'href="(runs/[^"]+)"', text)
    assert len(folders) == 6 * 9
    assert all((page.parent / unquote(folder)).is_dir() for folder in folders)
    assert text.count("attention-transfer train --config") == len(folders)


def test_nothing_finished_is_said(tmp_path: Path) -> None:
    text = write_report(tmp_path, [], [], teacher="vit", teacher_looks=None).read_text()
    assert "No run is finished yet" in text
    assert "<table" not in text
    assert markdown([]) == "No run is finished yet, so there is nothing to compare.\n"


def test_a_seed_twice_and_a_margin_of_nothing_are_refused(tmp_path: Path) -> None:
    twice = [row(tmp_path, "gta", "5 labels a class", 1, 0.5)] * 2
    with pytest.raises(UserError, match="seed 1 is given twice"):
        markdown(twice)
    with pytest.raises(UserError, match="margin is 0"):
        markdown(rows(tmp_path), margin=0.0)


def test_titles_are_read_back() -> None:
    amount = amount_of("12.5 % of the labels, recipe.layers [0, 5], rules.weight 0.1")
    assert amount == (12.5, " % of the labels", {"recipe.layers": "[0, 5]", "rules.weight": "0.1"})


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if not CHROMIUM.exists():
        pytest.skip(f"there is no browser at {CHROMIUM}")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_without_a_network_and_axe_finds_no_fault(browser: object, page: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    shown = browser.new_page(color_scheme=scheme, viewport={"width": 420, "height": 800})  # type: ignore[attr-defined] # Playwright's
    asked: list[str] = []
    errors: list[str] = []
    shown.on("request", lambda request: asked.append(request.url))
    shown.on("console", lambda message: errors.append(message.text))
    shown.goto(page.as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert errors == []
    result = axe.Axe().run(shown)
    assert result.violations_count == 0, result.generate_report()
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")  # wide tables scroll by themselves
    dark = shown.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    # Text of charts is of the page's colour.
    ink = "getComputedStyle(document.body).color"
    assert shown.evaluate(f"getComputedStyle(document.querySelector('svg text')).fill == {ink}")
    shown.emulate_media(media="print")
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    shown.close()
