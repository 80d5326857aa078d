"""Small faults put into a module: what mutation testing asks the tests to find.

One mutant is one change of the syntax tree. Left alone: annotations, decorators, assertions and
`if TYPE_CHECKING` (they tell the type checker, not the program), `strict=` of zip (an assertion
too), docstrings and prose (strings with a space), and the arguments of `raise` (the tests of
messages match parts of them).
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE,
    ast.GtE: ast.Gt, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_ALONE = (ast.Expr, ast.AugAssign, ast.Raise, ast.Continue, ast.Break)


@dataclass(frozen=True)
class Mutant:
    """One change.

    file    relative to the root
    line    where it is; reached: the lines of the statement, of which a test must run one
    number  which of the module's mutants it is
    text    the line as it was; change: what becomes of it
    """

    file: str
    line: int
    reached: tuple[int, int]
    number: int
    text: str
    change: str

    @property
    def name(self) -> str:
        """Stays the same while the line does, wherever in its file that is."""
        text = f"{self.file}\0{self.text}\0{self.change}"
        return f"{self.file}:{hashlib.sha256(text.encode()).hexdigest()[:10]}"


Change = tuple[ast.AST, str, Callable[[], None], tuple[int, int]]


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Every mutant of one module, in the order of its tree."""
    lines = source.splitlines()
    found = []
    for number, (node, what, _, reached) in enumerate(_in_body(ast.parse(source), (1, 1))):
        line = node.lineno  # type: ignore[attr-defined]
        found.append(Mutant(file, line, reached, number, lines[line - 1].strip(), what))
    return found


def mutated(source: str, number: int) -> ast.Module:
    """The module's tree with its mutant of this number."""
    tree = ast.parse(source)
    # lazily: whoever applies one stops there
    for index, (_, _, apply, _) in enumerate(_in_body(tree, (1, 1))):
        if index == number:
            apply()
            return ast.fix_missing_locations(tree)
    raise ValueError(f"expected a mutant's number, found {number} of {index + 1}")


def _in_body(parent: ast.AST, reached: tuple[int, int]) -> Iterator[Change]:
    for name, value in ast.iter_fields(parent):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for position, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if not isinstance(child, ast.AST) or _skipped(child, parent, name):
                continue
            lines = _header(child) if isinstance(child, ast.stmt) else reached
            for node, what, apply in _of(child, parent, name, position):
                yield node, what, apply, lines
            if not isinstance(child, ast.Raise):
                yield from _in_body(child, lines)


def _header(node: ast.stmt) -> tuple[int, int]:
    """The lines of a statement without the block that it may have."""
    body = getattr(node, "body", None)
    if not isinstance(body, list) or not body:
        return node.lineno, node.end_lineno or node.lineno
    return node.lineno, max(node.lineno, body[0].lineno - 1)


def _skipped(node: ast.AST, parent: ast.AST, field: str) -> bool:
    if isinstance(node, ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.keyword) and node.arg == "strict":
        return isinstance(parent, ast.Call) and _called(parent) == "zip"
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name):
        return node.test.id == "TYPE_CHECKING"
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        if node.targets[0].id in ("__all__", "__slots__"):
            return True
        return isinstance(node.value, ast.Call) and _called(node.value) in ("TypeVar", "getLogger")
    if isinstance(node, ast.AnnAssign) and "TypeAlias" in ast.unparse(node.annotation):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
        return True
    return isinstance(node, ast.Call) and _called(node) == "cast"


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _of(
    node: ast.AST, parent: ast.AST, field: str, position: int | None
) -> Iterator[tuple[ast.AST, str, Callable[[], None]]]:
    def put(new: ast.AST) -> Callable[[], None]:
        def apply() -> None:
            if position is None:
                setattr(parent, field, new)
            else:
                getattr(parent, field)[position] = new

        return apply

    def changed(new: ast.AST) -> tuple[ast.AST, str, Callable[[], None]]:
        ast.copy_location(new, node)
        return node, f"{_short(node)} -> {_short(new)}", put(new)

    if isinstance(node, ast.Compare):
        for index, old in enumerate(node.ops):
            other = copy.deepcopy(node)
            other.ops[index] = _COMPARE[type(old)]()
            yield changed(other)
    elif isinstance(node, ast.BoolOp):
        operator = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield changed(ast.BoolOp(operator, node.values))
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        yield changed(ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield changed(node.operand)
    elif isinstance(node, ast.Constant):
        yield from (changed(ast.Constant(value)) for value in _other_constants(node.value))
    elif isinstance(node, ast.Return) and node.value is not None:
        if not isinstance(node.value, ast.Constant):  # the constant itself is changed
            yield changed(ast.Return(ast.Constant(None)))
    elif isinstance(node, _ALONE) or _writes(node):
        yield node, f"{_short(node)} -> pass", put(ast.copy_location(ast.Pass(), node))
    if isinstance(node, ast.If | ast.While | ast.IfExp) and not _negated_inside(node.test):
        test = node.test

        def negate(node: ast.If | ast.While | ast.IfExp = node, test: ast.expr = test) -> None:
            node.test = ast.copy_location(ast.UnaryOp(ast.Not(), test), test)

        yield test, f"if {_short(test)} -> if not", negate
    if isinstance(node, ast.comprehension):
        for index, test in enumerate(node.ifs):

            def always(node: ast.comprehension = node, index: int = index) -> None:
                node.ifs[index] = ast.copy_location(ast.Constant(True), node.ifs[index])

            yield test, f"if {_short(test)} -> if True", always


def _negated_inside(test: ast.expr) -> bool:
    """True where changing the test's own operator is its negation already."""
    if isinstance(test, ast.UnaryOp):
        return isinstance(test.op, ast.Not)
    exact = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
    return isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], exact)


def _writes(node: ast.AST) -> bool:
    """An assignment into an object: leaving it out is no NameError."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    return bool(targets) and all(isinstance(t, ast.Attribute | ast.Subscript) for t in targets)


def _other_constants(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, float):
        return [value * 2 + 1]
    if isinstance(value, str) and value and " " not in value:
        return ["mutated"]
    return []


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 70 else text[:67] + "..."
