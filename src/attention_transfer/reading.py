"""Reading text that others wrote, as plain data: bounded, whatever it holds, and nothing in it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from attention_transfer.errors import UserError

LARGEST_YAML = 2**20
"""Bytes of a configuration."""

LARGEST_TEXT = 2**30
"""Bytes of a table, a list or the annotations of a data set."""

MOST_VALUES, DEEPEST = 100_000, 50
"""Values of a configuration, where each alias counts as what it stands for, and how many may lie in each other."""


class Unsound(ValueError):
    """What is wrong with a text, as the end of a sentence."""


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """A text file in UTF-8, with or without a mark at its beginning.

    Raises:
        Unsound: it is too large, or no UTF-8.
        OSError: it is missing, no regular file, or can't be read.
    """
    check_size(path, largest)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unsound(f"it is not text in UTF-8: {error}") from error


def check_size(path: Path, largest: int = LARGEST_TEXT) -> None:
    """Check the size of a file before it is read.

    Raises:
        Unsound: it is too large, or no regular file: a named pipe would be waited for, for ever.
        OSError: it is missing, or can't be looked at.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise Unsound("it is no regular file")
    if size > largest:
        raise Unsound(f"it has {size:,} bytes, more than {largest:,}")


def parse_json(text: str | bytes) -> Any:
    """JSON as plain data.

    Raises:
        Unsound: it is no JSON, or lies too deep in itself, or holds a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise Unsound("its lists or objects lie too deep in each other") from error
    except ValueError as error:
        raise Unsound(str(error)) from error


def read_yaml(path: Path) -> Any:
    """A YAML file as plain data.

    Raises:
        UserError: it is damaged, too large, or its aliases stand for more values than anyone writes.
        OSError: it can't be read.
    """
    try:
        return parse_yaml(read_text(path, LARGEST_YAML))
    except Unsound as error:
        raise UserError(f"{path} is not readable YAML ({error}); mend or restore it") from error


def parse_yaml(text: str) -> Any:
    """YAML as plain data; its values are counted before any is made.

    Raises:
        Unsound: it is no YAML, or holds too many values, or too deep in each other.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _measure(root, {})
        return loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise Unsound(f"line {mark.line + 1}" if mark is not None else str(error)) from error
    except RecursionError as error:
        raise Unsound("its values lie too deep in each other") from error
    except Unsound:
        raise
    except Exception as error:  # of a date or a number that is none: of many kinds
        raise Unsound(" ".join(str(error).split())[:200] or type(error).__name__) from error
    finally:
        loader.dispose()


def _measure(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values a node stands for, with those of its aliases, and how many lie in each other."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise Unsound("a value holds itself")
        return found
    known[id(node)] = None
    inner = node.value if isinstance(node, yaml.CollectionNode) else ()
    pairs = isinstance(node, yaml.MappingNode)
    parts = [_measure(part, known) for item in inner for part in (item if pairs else (item,))]
    values, depth = 1 + sum(v for v, _ in parts), 1 + max((d for _, d in parts), default=0)
    if values > MOST_VALUES:
        raise Unsound(f"it holds more than {MOST_VALUES:,} values")
    if depth > DEEPEST:
        raise Unsound(f"its values lie more than {DEEPEST} deep in each other")
    known[id(node)] = values, depth
    return values, depth
