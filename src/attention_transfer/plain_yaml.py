"""YAML as plain data, from files of anyone: bounded before memory and time are taken, and nothing in it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from attention_transfer.errors import UserError

MOST_BYTES = 2**20
MOST_VALUES = 100_000
"""Of a configuration, with what its anchors repeat; one of this project has some hundred."""

DEEPEST = 50


def read_mapping(path: Path) -> dict[str, Any]:
    """Names with values from a file.

    Raises:
        UserError: it is no file, or too large, no UTF-8, no YAML, or YAML of another kind.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file" if path.exists() else "not there"
        raise UserError(f"{path} is {what}, where a configuration file is needed; check the path")
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UserError(f"{path} is larger than a configuration may be (1 MiB); name another file")
    try:
        content = plain(data.decode("utf-8-sig"))
    except UserError as error:
        raise UserError(f"{path} {error}; fix or restore it") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not readable YAML; fix or restore it") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path} is not a configuration, which has names with values; fix or restore it")
    return content


def plain(text: str) -> Any:
    """Text of YAML as plain data.

    Raises:
        UserError: it is no YAML, or too much; the message is the end of a sentence.
    """
    try:
        return _constructed(text)
    except _TooMuch as error:
        raise UserError(f"{error}, as no configuration has") from None
    except RecursionError:
        raise UserError("is nested deeper than a configuration may be") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # so it fails on `!!int ""` and the like
        raise UserError(f"is not readable YAML{_line(error)}") from error


class _TooMuch(Exception):
    """What a file would become is too large; the message is the end of a sentence."""


def _constructed(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _size(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int | None], depth: int = 0) -> int:
    """Values below a node, each counted as often as anchors repeat it. The nodes themselves are there but once."""
    if depth > DEEPEST:
        raise _TooMuch(f"is nested more than {DEEPEST} levels deep")
    key = id(node)
    if key in known:
        size = known[key]
        if size is None:
            raise _TooMuch("holds a value that is a part of itself")
        return size
    known[key] = None
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    size = 1 if isinstance(node, yaml.ScalarNode) else 1 + sum(_size(part, known, depth + 1) for part in parts)
    if size > MOST_VALUES:
        raise _TooMuch(f"comes to more than {MOST_VALUES:,} values")
    known[key] = size
    return size


def _line(error: Exception) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return f" (line {mark.line + 1})" if mark is not None else ""
