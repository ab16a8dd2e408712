"""What holds for every file of the source, read from its syntax tree."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import attention_transfer

SOURCE = Path(attention_transfer.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# Names that torch has no public way for, by the file that needs them; another belongs here only with a reason.
PRIVATE = {
    "hooks/scope.py": {
        # When a backward pass has ended, also one that reaches no parameter. FSDP and DDP ask it in this way, too; the
        # public hooks of tensors and nodes tell of gradients, and none of them of the end.
        "torch.autograd.Variable._execution_engine.queue_callback",
    },
}


def test_no_private_name_of_another_library_is_used() -> None:
    found = {f"{path.relative_to(SOURCE)}: {name}" for path in FILES for name in private_names(path)}
    assert found == set()


def test_private_names_are_found(tmp_path: Path) -> None:
    written = tmp_path / "file.py"
    written.write_text("import torch\nfrom torch import nn\nfrom timm.x import _y\ntorch.a._b.c()\nnn.Module()._own\n")
    assert [*private_names(written)] == ["timm.x._y", "torch.a._b", "torch.a._b.c"]


@pytest.mark.parametrize("name", ["filterwarnings", "simplefilter"])
def test_no_warning_is_silenced(name: str) -> None:
    assert [str(path.relative_to(SOURCE)) for path in FILES if name in path.read_text(encoding="utf-8")] == []


def private_names(path: Path) -> Iterator[str]:
    """Dotted names that begin with an imported module of another library and have a private part."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            tops = {a: a.name if a.asname else a.name.split(".")[0] for a in node.names}
            modules |= {a.asname or top: top for a, top in tops.items()}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules |= {(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names}
    foreign = {name: module for name, module in modules.items() if not _is_near(module)}
    dotted = set(foreign.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (chain := _chain(node)) and chain[0] in foreign:
            dotted.add(".".join([foreign[chain[0]], *chain[1:]]))
    allowed = PRIVATE.get(path.relative_to(SOURCE).as_posix() if path.is_relative_to(SOURCE) else "", set())
    for name in sorted(dotted):
        private = any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
        if private and not any(f"{known}.".startswith(f"{name}.") for known in allowed):
            yield name


def _is_near(module: str) -> bool:
    """Whether a module is ours or Python's."""
    return module.split(".", maxsplit=1)[0] in {"attention_transfer", "_typeshed", *sys.stdlib_module_names}


def _chain(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (before := _chain(node.value)):
        return [*before, node.attr]
    return []
