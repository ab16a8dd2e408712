"""The reference tables of the docs are those of the configurations."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from attention_transfer.verbs import VERBS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import verb_tables  # noqa: E402 - a script, not a package


@pytest.mark.parametrize("page", verb_tables.PAGES)
def test_the_tables_are_those_of_the_code(page: str) -> None:
    text = (verb_tables.DOCS / page).read_text(encoding="utf-8")
    assert text == verb_tables.written(text), "run python tools/verb_tables.py"


def test_every_verb_with_settings_has_a_table() -> None:
    tables = set(re.findall(r"<!-- flags: (\w+) -->", (verb_tables.DOCS / "cli.md").read_text(encoding="utf-8")))
    assert tables == VERBS.keys() - {"presets"}
