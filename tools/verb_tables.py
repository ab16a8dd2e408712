"""Write the tables of docs/cli.md and docs/run-folder.md from the configurations of the verbs.

    python tools/verb_tables.py

A table stands between `<!-- flags: train -->` (or `config:`, or `group: recipe`) and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path

from attention_transfer.config.base import Setting, docs_of, holds_rules, settings_of
from attention_transfer.config.recipe import Recipe
from attention_transfer.help_text import default_words, type_words
from attention_transfer.verbs import VERBS

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("cli.md", "run-folder.md")
_TABLE = re.compile(r"<!-- (flags|config|group): (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def flags(name: str) -> str:
    """A row for each flag of a verb."""
    verb = VERBS[name]
    rows = [_row(_flag(s, verb.words), docs_of(verb.config)[s.name], s) for s in settings_of(verb.config).values()]
    return _table("flag", rows)


def config(name: str) -> str:
    """A row for each name in a run's `config.yaml`."""
    kind = VERBS[name].config
    left = kind.kept_elsewhere
    rows = [_row(f"`{s.name}`", docs_of(kind)[s.name], s) for s in settings_of(kind).values() if s.name not in left]
    return _table("name", rows)


def group(name: str) -> str:
    """A row for each setting of a group."""
    kind = {"recipe": Recipe}[name]
    rows = [_row(f"`--{name}.{_dashed(s.name)}`", docs_of(kind)[s.name], s) for s in settings_of(kind).values()]
    return _table("flag", rows)


def written(page: str) -> str:
    """A page with the tables as the code has them."""
    makers: dict[str, Callable[[str], str]] = {"flags": flags, "config": config, "group": group}

    def table(found: re.Match[str]) -> str:
        return f"<!-- {found[1]}: {found[2]} -->\n{makers[found[1]](found[2])}\n<!-- end -->"

    return _TABLE.sub(table, page)


def _flag(setting: Setting, words: tuple[str, ...]) -> str:
    if setting.name in words:
        return f"`{setting.name.upper()}`"
    if holds_rules(setting.kind):
        return "`--rules+`"
    return f"`--{_dashed(setting.name)}.…`" if setting.group is not None else f"`--{_dashed(setting.name)}`"


def _row(first: str, doc: str, setting: Setting) -> tuple[str, str, str, str]:
    plain = setting.group is None and not holds_rules(setting.kind)
    kind = type_words(setting.kind).lower().replace("|", " \\| ") if plain else ""
    given = setting.default not in (MISSING, None, "") and plain
    return first, kind, f"`{default_words(setting.default)}`" if given else "", doc.replace("<", "&lt;")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _table(head: str, rows: list[tuple[str, str, str, str]]) -> str:
    lines = [(head, "type", "default", "meaning"), ("---", "---", "---", "---"), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write the pages."""
    for page in PAGES:
        path = DOCS / page
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
