"""Where a module can be changed by one small fault, and the module so changed; used by `benchmarks.mutants`."""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What says how a method is trained.
RECIPES = {"RECIPES", "UNETPP_RECIPES", "_SMALL", "_small", "_phases", "_recipes", "ENTRY", "CATALOGUE", "__all__"}

_SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip

#: From a node to its child: the field's name, and the place in a list.
Way = Sequence[tuple[str, int | None]]


@dataclass(frozen=True)
class Mutant:
    """One fault: file below the package, kind, the way to the node; first and last line, and the first one's text.

    `key` names it by what stands there, so that a line added elsewhere in the file does not make it another.
    """

    file: str
    kind: str
    way: Way
    first: int
    last: int
    code: str
    key: str


def places(tree: ast.Module) -> list[tuple[list[Any], str]]:
    """Every place that can be changed: the way to the node, and what is done there."""
    found: list[tuple[list[Any], str]] = []

    def walk(node: ast.AST, way: list[Any]) -> None:
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.FunctionDef) and node.name in RECIPES:
            return
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(one, ast.Name) and one.id in RECIPES for one in targets):
                return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if (isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in _SWAPS) or (
            isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _SWAPS
        ):
            found.append((way, "operator"))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            found.append((way, "sign"))
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            found.append((way, "number"))
        if isinstance(node, ast.If | ast.IfExp):
            found.append((way, "condition"))
        if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            found.append((way, "left out"))
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            for index, child in enumerate(value) if isinstance(value, list) else ((None, value),):
                if isinstance(child, ast.AST):
                    walk(child, [*way, (name, index)])

    walk(tree, [])
    return found


def mutated(tree: ast.Module, way: Way, kind: str) -> ast.Module:
    """The module with one place changed."""
    changed = copy.deepcopy(tree)
    holder: Any = None
    node: Any = changed
    for name, index in way:
        holder = (node, name, index)
        node = getattr(node, name) if index is None else getattr(node, name)[index]
    new: Any = node
    if kind == "operator":
        if isinstance(node, ast.Compare):
            node.ops[0] = _SWAPS[type(node.ops[0])]()
        else:
            node.op = _SWAPS[type(node.op)]()
    elif kind == "sign":
        new = node.operand
    elif kind == "number":
        value = node.value
        new = ast.Constant(
            not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else 2 * value or 1.0
        )
    elif kind == "condition":
        node.test = ast.UnaryOp(ast.Not(), node.test)
    else:
        new = ast.Pass()
    parent, name, index = holder
    if index is None:
        setattr(parent, name, new)
    else:
        getattr(parent, name)[index] = new
    return ast.fix_missing_locations(changed)


def mutants_of(file: Path, name: str) -> Iterator[Mutant]:
    """Every mutant of a module."""
    text = file.read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    seen: dict[str, int] = {}
    for way, kind in places(tree):
        node: Any = tree
        inner: list[Any] = []
        statement: Any = None
        for step, index in way:
            node = getattr(node, step) if index is None else getattr(node, step)[index]
            inner.append((step, index))
            if isinstance(node, ast.stmt):
                statement, inner = node, []
        code = lines[statement.lineno - 1].strip()
        label = f"{name}|{kind}|{ast.unparse(statement)}|{inner}"
        seen[label] = seen.get(label, 0) + 1
        first, last = (getattr(node, mark, None) or getattr(statement, mark) for mark in ("lineno", "end_lineno"))
        shown = lines[first - 1].strip() if first else code
        key = hashlib.sha256(f"{label}|{seen[label]}".encode()).hexdigest()[:16]
        yield Mutant(name, kind, way, first, last, shown, key)
