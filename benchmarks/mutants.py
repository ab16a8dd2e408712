"""Small wrong changes to Python source, for `benchmarks/mutation.py`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple

_COMPARED = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq, ast.Is: ast.IsNot, ast.In: ast.NotIn}
_COMPARED |= {after: before for before, after in _COMPARED.items()}
_COMPUTED = {ast.Add: ast.Sub, ast.Mult: ast.Div, ast.BitOr: ast.BitAnd}
_COMPUTED |= {after: before for before, after in _COMPUTED.items()}
_COMPUTED |= {ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult}
_RENAMED = {"min": "max", "any": "all", "sum": "mean", "zeros_like": "ones_like"}
_RENAMED |= {after: before for before, after in _RENAMED.items()}
_LEFT_AWAY = ("detach", "clone", "contiguous", "float", "to", "abs", "square", "neg", "exp", "log")  # methods
_INVERTED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)  # swapped, such a condition is negated already
_EVERYWHERE = (1, 1 << 30)

Span = tuple[int, int]
Change = tuple[str, ast.AST, str]  # what is done, to which node, and what is written in its place


class Mutant(NamedTuple):
    """A change.

    Attributes:
        file: path in the project.
        line: where it is, from 1.
        column: in bytes, from 0.
        operator: what is done.
        before: the text that is replaced.
        after: what replaces it.
        start: where the text begins in the file, in bytes.
        function: the outermost function that it is in, by its qualified name; empty for what runs at import.
        first: first of the lines of which a test must run one to see the change.
        last: the last of them.
    """

    file: str
    line: int
    column: int
    operator: str
    before: str
    after: str
    start: int
    function: str
    first: int
    last: int

    @property
    def name(self) -> str:
        """One that no other mutant has."""
        return f"{self.file}:{self.line}:{self.column}: {self.operator}: {self.after}"

    def applied(self, source: bytes) -> bytes:
        """The file with the change."""
        before = self.before.encode()
        assert source[self.start :].startswith(before)
        return source[: self.start] + self.after.encode() + source[self.start + len(before) :]

    def row(self) -> dict[str, Any]:
        """What results say of it."""
        return {
            "name": self.name,
            **{key: getattr(self, key) for key in ("file", "line", "operator", "before", "after")},
        }


def mutants_of(file: str, source: bytes) -> list[Mutant]:
    """Every mutant of a file, in the order of its text."""
    starts = [0, *accumulate(len(line) for line in source.splitlines(keepends=True))]
    found = []
    for (operator, node, after), function, (first, last) in _changes(ast.parse(source).body, _EVERYWHERE):
        start = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        stop = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        before = source[start:stop].decode()
        where = (file, node.lineno, node.col_offset)  # type: ignore[attr-defined]
        found.append(Mutant(*where, operator, before, after, start, function, first, last))
    return sorted(found, key=lambda one: (one.start, one.operator, one.after))


def _changes(
    body: list[ast.stmt], span: Span, classes: str = "", function: str = "", bound: frozenset[str] = frozenset()
) -> Iterator[tuple[Change, str, Span]]:
    """The changes in statements, with the function that they are in and the lines where tests see them.

    Args:
        body: the statements.
        span: those lines, where the statements run at import.
        classes: the classes around them, each with a dot behind it.
        function: the outermost function around them, if there is one.
        bound: the names that have a value there.
    """
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            whole = (statement.lineno, statement.end_lineno or 0)
            if isinstance(statement, ast.ClassDef):
                yield from _changes(statement.body, whole, f"{classes}{statement.name}.")
                continue
            given = statement.args
            for default in (*given.defaults, *given.kw_defaults):
                yield from ((change, function, whole) for change in _in_expression(default))
            names = frozenset(argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs))
            yield from _changes(statement.body, whole, classes, function or classes + statement.name, names)
            continue
        blocks = [block for name in ("body", "orelse", "finalbody") if (block := getattr(statement, name, None))]
        blocks += [handler.body for handler in getattr(statement, "handlers", ())]
        end = min(block[0].lineno - 1 for block in blocks) if blocks else statement.end_lineno or 0
        here = (statement.lineno, max(statement.lineno, end)) if function else span
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            yield from _changes(statement.orelse, span, classes, function, bound)
            continue
        own = [*_of_statement(statement, bound)] if function else [*_of_branch(statement)]
        own += [change for part in _expressions(statement) for change in _in_expression(part)]
        yield from ((change, function, here) for change in own)
        bound |= {x.id for x in ast.walk(statement) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}
        for block in blocks:
            yield from _changes(block, span, classes, function, bound)


def _expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    """What a statement computes itself, without annotations, docstrings and what is below it."""
    if isinstance(statement, ast.Assert) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    ):
        return
    for name, value in ast.iter_fields(statement):
        if name != "annotation":
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.withitem):
                    yield part.context_expr
                if isinstance(part, ast.expr):
                    yield part


def _of_branch(statement: ast.stmt) -> Iterator[Change]:
    if isinstance(statement, ast.If | ast.While):
        yield from _negated(statement.test)


def _of_statement(statement: ast.stmt, bound: frozenset[str]) -> Iterator[Change]:
    yield from _of_branch(statement)
    if isinstance(statement, ast.Return) and statement.value is not None and ast.unparse(statement.value) != "None":
        yield "return None", statement, "return None"
    if isinstance(statement, ast.AugAssign) and type(statement.op) in _COMPUTED:
        swapped = ast.AugAssign(statement.target, _COMPUTED[type(statement.op)](), statement.value)
        yield "arithmetic", statement, ast.unparse(swapped)
    removable: type[ast.stmt] | Any = ast.AugAssign | ast.Raise | ast.Continue | ast.Break | ast.Delete
    if isinstance(statement, ast.Expr):
        gone = isinstance(statement.value, ast.Call)
    elif isinstance(statement, ast.Assign):  # without a first value for a name all would fail
        names = [
            x for target in statement.targets for x in ast.walk(target) if isinstance(getattr(x, "ctx", 0), ast.Store)
        ]
        gone = all(x.id in bound for x in names if isinstance(x, ast.Name))
    else:
        gone = isinstance(statement, removable)
    if gone:
        yield "statement removed", statement, "pass"


def _in_expression(node: ast.AST | None) -> Iterator[Change]:
    """The changes of an expression and of all in it."""
    if node is None or isinstance(node, ast.JoinedStr):
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "TypeVar":
        return
    if isinstance(node, ast.expr):
        yield from _of_operators(node)
        yield from _of_call(node)
    if isinstance(node, ast.IfExp):
        yield from _negated(node.test)
    if isinstance(node, ast.comprehension):
        for condition in node.ifs:
            yield from _negated(condition)
    if isinstance(node, ast.Constant):
        yield from _of_constant(node)
    if isinstance(node, ast.arguments):
        for default in (*node.defaults, *node.kw_defaults):
            yield from _in_expression(default)
        return
    for child in ast.iter_child_nodes(node):
        yield from _in_expression(child)


def _negated(test: ast.expr) -> Iterator[Change]:
    negated_already = isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], _INVERTED)
    if not negated_already and not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
        yield "condition negated", test, f"(not {_text(test)})"


def _of_operators(node: ast.expr) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            swapped = [*node.ops[:i], _COMPARED[type(operator)](), *node.ops[i + 1 :]]
            yield "comparison", node, _text(ast.Compare(node.left, swapped, node.comparators))
    if (
        isinstance(node, ast.BinOp)
        and type(node.op) in _COMPUTED
        and "None" not in (_text(node.left), _text(node.right))
    ):
        yield "arithmetic", node, _text(ast.BinOp(node.left, _COMPUTED[type(node.op)](), node.right))
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "boolean", node, _text(ast.BoolOp(other, node.values))
    if isinstance(node, ast.UnaryOp):
        yield "operator removed", node, _text(node.operand)


def _of_constant(node: ast.Constant) -> Iterator[Change]:
    value = node.value
    if isinstance(value, bool):
        yield "constant", node, str(not value)
    elif isinstance(value, int | float):
        yield "constant", node, repr(value + 1 if isinstance(value, int) or value == 0 else 2 * value)
    elif isinstance(value, str) and " " not in value:
        yield "constant", node, repr(f"XX{value}")


def _of_call(node: ast.expr) -> Iterator[Change]:
    if not isinstance(node, ast.Call):
        return
    for i, keyword in enumerate(node.keywords):
        if keyword.arg is not None:
            rest = [*node.keywords[:i], *node.keywords[i + 1 :]]
            yield f"argument {keyword.arg} left out", node, _text(ast.Call(node.func, node.args, rest))
    if len(node.args) > 1 and not any(isinstance(x, ast.Starred) for x in node.args[:2]):
        one, two, *rest_of = node.args
        if _text(one) != _text(two):
            yield "arguments swapped", node, _text(ast.Call(node.func, [two, one, *rest_of], node.keywords))
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in _RENAMED:
        other = _RENAMED[name]
        func = ast.Attribute(node.func.value, other) if isinstance(node.func, ast.Attribute) else ast.Name(other)
        if isinstance(node.func, ast.Attribute) or other != "mean":  # Python has none
            yield "function", node, _text(ast.Call(func, node.args, node.keywords))
    if isinstance(node.func, ast.Attribute) and name in _LEFT_AWAY and len(node.args) < 2:
        yield f"{name} left away", node, _text(node.func.value)


def _text(node: ast.expr) -> str:
    return f"({ast.unparse(node)})"
