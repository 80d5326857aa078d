"""Rules: a pattern written in ops, a legality check with reasons, a gain, and the rewrite."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

from infopt.compiler.cost import cost_of, seconds
from infopt.compiler.errors import CannotInfer, ContractBroken, PatternError
from infopt.compiler.exchange import exchange as exchange
from infopt.compiler.graph import Graph, Node, attr_key, type_text
from infopt.compiler.infer import Builder, kinds_fit, overloads
from infopt.compiler.ops import Op
from infopt.compiler.pipeline import Pass, PassContext

_COMMUTATIVE = {
    "aten.add.Tensor",
    "aten.mul.Tensor",
    "aten.maximum.default",
    "aten.minimum.default",
}
_MAX_SWEEPS = 20


@dataclass(frozen=True, eq=False)
class Var:
    """A pattern variable: matches any node, the same one wherever it appears."""

    name: str


@dataclass(frozen=True, eq=False)
class Any_:
    """Matches any attribute value; one with a name is remembered, and is the same everywhere."""

    name: str = ""


@dataclass(frozen=True, eq=False)
class Call:
    """A pattern node: one of several ops (the overloads a name may mean) with bound arguments."""

    name: str
    forms: tuple[tuple[Op, tuple, tuple], ...]


class PatternBuilder:
    """`o` in a pattern: calls build pattern nodes; `o.any("eps")` accepts any attribute value, the
    same wherever the name stands.

    Attributes match exactly. One that is not written matches its default, exactly.
    """

    def any(self, name: str = "") -> Any_:
        return Any_(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = overloads(name)

        def call(*args: Any, **attrs: Any) -> Call:
            forms = []
            for op in found:
                try:
                    tensors, attributes = op.bind(args, attrs)
                except TypeError:
                    continue
                if kinds_fit(op, args, attrs, (Var, Call)):
                    forms.append((op, tensors, attributes))
            if not forms:
                raise PatternError(f"no form of {name!r} takes {args} {attrs}")
            return Call(name, tuple(forms))

        return call


@dataclass
class Match:
    """One place in a graph that a pattern fits.

    Variables and named attributes are attributes of the match: `m.x.type`, `m.eps`.
    root         the node whose value is rewritten
    nodes        every matched node, root first
    replacement  what `rewrite` made of it
    """

    graph: Graph
    root: Node
    bound: dict[str, Any] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    replacement: Node | None = None
    reason: str = ""
    depth: int = 0

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["bound"][name]
        except KeyError:
            raise AttributeError(f"the pattern has no variable {name!r}") from None

    def fail(self, reason: str) -> bool:
        self.reason = reason
        self.depth = len(self.nodes)
        return False


@dataclass(frozen=True)
class Rule(Pass):
    """A pass written as pattern -> rewrite.

    always    a canonical form: applied without asking whether it pays
    shared    matched inner values may be read from outside the match (they are computed anyway)
    """

    always: ClassVar[bool] = False
    shared: ClassVar[bool] = False

    # Subclasses name their own variables after `o`: pattern(self, o, x, weight).
    def pattern(self, o: Any, *variables: Any) -> Any:
        """The pattern, or a list of alternatives."""
        raise NotImplementedError(f"{type(self).__name__} must define pattern")

    def legal(self, m: Match, ctx: PassContext) -> str | None:
        """None, or the reason why this match must stay as it is."""
        return None

    def gain(self, m: Match, ctx: PassContext) -> float:
        """Predicted seconds per call on ctx.target: by default the cost model's difference."""
        assert m.replacement is not None
        removed = [n for n in m.nodes if n is m.root or all(u in m.nodes for u in m.graph.users(n))]
        before = sum(_seconds(n, m.graph, ctx) for n in removed)
        return before - sum(_seconds(n, m.graph, ctx) for n in _new_nodes(m))

    def rewrite(self, o: Any, *variables: Any) -> Node:
        """The replacement; parameters are the pattern's variables and named attributes, by name."""
        raise NotImplementedError(f"{type(self).__name__} must define rewrite")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """Apply the rule everywhere, until nothing matches any more."""
        made: set[Node] = set()
        for _ in range(_MAX_SWEEPS):
            changes = self._sweep(graph, ctx, made)
            if not changes or ctx.is_spent:
                return graph
            images: dict[Node, Node] = {}
            graph = ctx.exchange(graph, changes, images)
            made = {images[n] for n in changes} | {images.get(n, n) for n in made}
            if ctx.entry is not None:  # the last sweep tells why the rest declined
                ctx.entry.sites[:] = [s for s in ctx.entry.sites if s.applied]
        raise ContractBroken(
            f"pass {self.name} still matches its own result after {_MAX_SWEEPS} sweeps"
        )

    def _sweep(self, graph: Graph, ctx: PassContext, made: set[Node]) -> dict[Node, Node]:
        """The replacements of one walk from the results to the inputs; matches do not overlap."""
        changes: dict[Node, Node] = {}
        used: set[Node] = set()
        patterns = compiled_patterns(type(self), self)
        roots = {op for call, _ in patterns for op, _, _ in call.forms}
        for node in reversed(graph.nodes()):
            if node.op not in roots:
                continue
            found = best_match(patterns, graph, node)
            if found.reason:
                near = found.depth > 1 or all(_size(c) == 1 for c, _ in patterns)
                if near and node not in made:
                    ctx.site(place(graph, node), False, found.reason)
                continue
            if any(n in used for n in found.nodes):
                continue
            reason = self._decide(found, ctx)
            if reason is None:
                assert found.replacement is not None
                changes[node] = found.replacement
                used.update(found.nodes)
        return changes

    def _decide(self, m: Match, ctx: PassContext) -> str | None:
        """None and m.replacement set, or the reason not to; both are recorded."""
        reason = self._outside_readers(m) or self.legal(m, ctx)
        gain = None
        if reason is None:
            try:
                m.replacement = _call_by_name(self.rewrite, ctx.builder, m)
            except CannotInfer as error:
                reason = str(error)
            else:
                reason = _same_value_type(self, m)
        if reason is None and not self.always:
            gain = self.gain(m, ctx)
            if gain <= 0:
                reason = f"does not pay on {ctx.target.name}"
        if reason is None and m.replacement is m.root:
            return "is its own rewrite"
        ctx.site(place(m.graph, m.root), reason is None, reason or "", gain)
        return reason

    def _outside_readers(self, m: Match) -> str | None:
        if self.shared:
            return None
        inside = set(m.nodes)
        for node in m.nodes[1:]:
            if m.graph.is_output(node):
                return f"{node!r} is also a result"
            others = [u for u in m.graph.users(node) if u not in inside]
            if others:
                return f"{node!r} is also read by {others[0]!r}"
        return None


def place(graph: Graph, node: Node) -> str:
    """How a report names a node: its number in the dump of the graph, its op and type."""
    return f"%{graph.nodes().index(node)} {node.op.name} {type_text(node.type)}"


def compiled_patterns(cls: type[Rule], rule: Rule) -> list[tuple[Call, tuple[str, ...]]]:
    """The alternatives of a rule's pattern, with the names of its variables."""
    names = tuple(inspect.signature(rule.pattern).parameters)[1:]
    made = rule.pattern(PatternBuilder(), *(Var(n) for n in names))
    alternatives = made if isinstance(made, list | tuple) else [made]
    for call in alternatives:
        if not isinstance(call, Call):
            raise PatternError(f"{cls.__name__}.pattern must return op calls, found {call!r}")
    return [(call, names) for call in alternatives]


def best_match(patterns: Sequence[tuple[Call, tuple[str, ...]]], graph: Graph, node: Node) -> Match:
    """The first alternative that fits, or the failure that got furthest, with its reason."""
    best: Match | None = None
    for call, names in patterns:
        m = match(call, graph, node)
        if not m.reason:
            for name in names:
                m.bound.setdefault(name, None)
            return m
        if best is None or m.depth > best.depth:
            best = m
    assert best is not None
    return best


def match(pattern: Call, graph: Graph, root: Node) -> Match:
    """Match a pattern with its root at one node; `reason` says what did not fit."""
    m = Match(graph, root)
    if _fits(pattern, root, m):
        m.reason = ""
    return m


def _fits(pattern: Any, value: Any, m: Match) -> bool:
    if isinstance(pattern, Var):
        if not isinstance(value, Node):
            return m.fail(f"{pattern.name} is absent")
        known = m.bound.setdefault(pattern.name, value)
        return known is value or m.fail(f"{pattern.name} is two different values")
    if isinstance(pattern, tuple):
        if not isinstance(value, tuple) or len(value) != len(pattern):
            return m.fail("a list of another length")
        return all(_fits(p, v, m) for p, v in zip(pattern, value, strict=True))
    if not isinstance(pattern, Call):
        return value is pattern or m.fail(f"expected {pattern!r}, found {value!r}")
    if not isinstance(value, Node):
        return m.fail(f"expected {pattern.name}, found {value!r}")
    forms = [f for f in pattern.forms if f[0] is value.op]
    if not forms:
        return m.fail(f"expected {pattern.name}, found {value.op.name}")
    return any(_form_fits(form, value, m) for form in forms)


def _form_fits(form: tuple[Op, tuple, tuple], node: Node, m: Match) -> bool:
    op, tensors, attrs = form
    start = (dict(m.bound), list(m.nodes))
    m.nodes.append(node)
    if not _attributes_fit(op, attrs, node, m):
        return False
    after = (dict(m.bound), list(m.nodes))
    orders = [tensors]
    if op.name in _COMMUTATIVE and dict(node.attrs).get("alpha", 1) == 1:
        orders.append(tensors[::-1])
    reason, depth = "", 0
    for order in orders:
        m.bound, m.nodes = dict(after[0]), list(after[1])
        if all(_fits(p, v, m) for p, v in zip(order, node.args, strict=True)):
            return True
        if m.depth >= depth:
            reason, depth = m.reason, m.depth
    m.bound, m.nodes = start
    m.reason, m.depth = reason, depth
    return False


def _attributes_fit(op: Op, attrs: tuple, node: Node, m: Match) -> bool:
    for (name, expected), (_, found) in zip(attrs, node.attrs, strict=True):
        if isinstance(expected, Any_):
            known = m.bound.setdefault(expected.name, found) if expected.name else found
            if not _same_number(known, found) and attr_key(known) != attr_key(found):
                return m.fail(f"{expected.name} is {known!r} and {found!r}")
        elif attr_key(expected) != attr_key(found):
            return m.fail(f"{op.name}: {name} is {found!r}, expected {expected!r}")
    return True


def _same_number(a: Any, b: Any) -> bool:
    """1 and 1.0, as programs write both for one number."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a, b))
    return numbers and a == b and math.copysign(1, a) == math.copysign(1, b)


def _new_nodes(m: Match) -> list[Node]:
    """The nodes of the replacement that the graph does not compute already."""
    old = m.graph._root_set.union(m.graph.nodes())
    found: dict[Node, None] = {}
    stack = [m.replacement] if m.replacement is not None else []
    while stack:
        node = stack.pop()
        if node in old or node in found:
            continue
        found[node] = None
        stack.extend(node.inputs)
    return list(found)


def _seconds(node: Node, graph: Graph, ctx: PassContext) -> float:
    return seconds(cost_of(node), ctx.target, node, graph.dims)


def _same_value_type(rule: Rule, m: Match) -> str | None:
    made = m.replacement
    if not isinstance(made, Node):
        raise ContractBroken(f"{rule.name}.rewrite must return a node, found {made!r}")
    old, new = m.root.tensor_type, made.tensor_type
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        raise ContractBroken(f"{rule.name}.rewrite gives {new}, expected {old} as {m.root!r} has")
    return None


def _call_by_name(rewrite: Any, o: Builder, m: Match) -> Node:
    names = _parameters(getattr(rewrite, "__func__", rewrite))
    values = {"m": m, **m.bound}
    missing = [n for n in names if n not in values]
    if missing:
        raise PatternError(f"rewrite asks for {missing}, the pattern has {sorted(m.bound)}")
    return rewrite(o, *(values[n] for n in names))


@cache
def _parameters(rewrite: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(rewrite).parameters)[2:]


def _size(pattern: Any) -> int:
    """How many op calls a pattern has."""
    if isinstance(pattern, tuple):
        return sum(_size(p) for p in pattern)
    return 1 + _size(pattern.forms[0][1]) if isinstance(pattern, Call) else 0
