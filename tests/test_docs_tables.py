"""The reference tables of the docs are those of the configurations."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from attention_transfer.verbs import VERBS

ROOT = Path(__file__).parent.parent
TABLES = runpy.run_path(str(ROOT / "tools" / "verb_tables.py"))


@pytest.mark.parametrize("page", TABLES["PAGES"])
def test_the_tables_are_those_of_the_code(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert text == TABLES["written"](text), "run python tools/verb_tables.py"


def test_every_verb_with_settings_has_a_table() -> None:
    tables = set(re.findall(r"<!-- flags: (\w+) -->", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")))
    assert tables == VERBS.keys() - {"presets"}
