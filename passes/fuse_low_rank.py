"""linear(linear(x, v), u) -> linear_chain(x, v, u): nothing between thin factors is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from infopt.codegen.kernel import find_emitter
from infopt.codegen.kernels.linear import FEW
from infopt.codegen.kernels.linear_chain import (
    MOST,
    linear_chain,
    narrow_linear_chain,
    rows_of_task,
)
from infopt.compiler.cost import cost_of, node_seconds, seconds
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.types import hint

_NARROW = "narrow_linear"
_LINEARS = ("aten.linear.default", "linear_act", _NARROW)


@dataclass(frozen=True)
class FuseLowRank(Pass):
    """linear(linear(x, v), u) -> linear_chain(x, v, u), an MLP of such factors as one chain of four

    Thin factors whose products nobody else reads, with whatever follows each product, in f32, bf16,
    f16, or in bf16 of f32 operands. A task takes some rows through the whole chain, so it declines
    where there are too few rows for all cores, where a target has no kernel for such ranks, and
    wherever the estimate says that the products take no longer one by one.
    """

    name: ClassVar[str] = "fuse-low-rank"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-linear-epilogue",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        changes: dict[Node, Node] = {}
        taken: set[Node] = set()
        for node in reversed(graph.nodes()):  # an MLP before the factors it begins with
            if node in taken or not _is_thin_pair(node):
                continue
            for chain in _chains(graph, node):
                made, reason, gain = _judge(graph, ctx, chain)
                if made is not None:
                    changes[node] = made
                    taken.update(chain)
                    break
            ctx.site(node, made is not None, reason, gain)
        return ctx.exchange(graph, changes) if changes else graph


def _chains(graph: Graph, node: Node) -> Iterator[tuple[Node, ...]]:
    """The products that end with this one, the longer chain first."""
    first: Node = node.args[0]  # type: ignore[assignment]
    before = first.args[0]
    if isinstance(before, Node) and _is_thin_pair(before) and graph.use_count(before) == 1:
        same = (before.op.name == _NARROW) == (node.op.name == _NARROW)
        if same and not graph.is_output(before) and _residual(before) is None:
            yield before.args[0], before, first, node  # type: ignore[misc]
    yield first, node


def _judge(
    graph: Graph, ctx: PassContext, chain: tuple[Node, ...]
) -> tuple[Node | None, str, float | None]:
    """(the products as one op, what it is, the seconds it saves), or None and why not."""
    for inner in chain[:-1]:
        if graph.use_count(inner) > 1 or graph.is_output(inner):
            return None, f"{inner!r} is read elsewhere too", None
        if _residual(inner) is not None:
            return None, f"{inner!r} ends with a residual", None
    try:
        made = _made(ctx, chain)
    except CannotInfer as error:
        return None, str(error), None
    if made.type != chain[-1].type:
        return None, f"the chain gives {made.type}, expected {chain[-1].type}", None
    emitter, missing = find_emitter(made, ctx.target)
    if emitter is None:
        return None, missing, None
    rows = hint(chain[0].tensor_type.numel, graph.dims) // chain[0].shape[-1]  # type: ignore[operator]
    least = 32 * ctx.target.cores if ctx.target.kind == "cpu" else FEW + 1
    if rows < least:
        return None, f"{rows} rows are too few to share out, expected {least} or more", None
    before = sum(node_seconds(n, ctx.target, graph.dims) for n in chain)
    after = _chain_seconds(graph, ctx, made, rows)
    told = f"{len(chain)} products in {after * 1e6:.4g} us, one by one {before * 1e6:.4g} us"
    if after > before:
        return None, f"it does not pay: {told}", before - after
    return made, told, before - after


def _made(ctx: PassContext, chain: tuple[Node, ...]) -> Node:
    weights, biases = [n.args[1] for n in chain], [n.args[2] for n in chain]
    absent = [None] * (MOST - len(chain))
    args: list[Any] = [chain[0].args[0], *weights, *absent, *biases, *absent, _residual(chain[-1])]
    attrs: dict[str, Any] = {
        "functions": tuple(dict(n.attrs).get("activation", "none") for n in chain)
    }
    if chain[-1].op.name == _NARROW:
        return ctx.builder.call(narrow_linear_chain, *args, **attrs, out=chain[-1].attr("out"))
    return ctx.builder.call(linear_chain, *args, **attrs)


def _chain_seconds(graph: Graph, ctx: PassContext, made: Node, rows: int) -> float:
    """The estimate of the chain: a task is a part of the rows, and reads all weights."""
    target, cost = ctx.target, cost_of(made)
    flops, traffic = hint(cost.flops, graph.dims), hint(cost.bytes, graph.dims)
    tasks = -(-rows // rows_of_task(made, rows, target))
    turns = -(-tasks // target.cores) * target.cores  # with those in which the last cores idle
    weights = [w.tensor_type for w in made.args[1 : 1 + MOST] if isinstance(w, Node)]
    size = sum(int(w.numel) * w.dtype.itemsize for w in weights)
    again = (tasks - 1) * size if size > target.caches[-1] else 0
    spread = replace(cost, flops=flops * turns // tasks, bytes=traffic + again)
    return seconds(spread, target, made)


def _is_thin_pair(node: Node) -> bool:
    """True where a layer reads another one, and both hold fewer numbers than one would."""
    first = node.args[0] if node.op.name in _LINEARS else None
    if not isinstance(first, Node) or first.op.name not in _LINEARS:
        return False
    if (first.op.name == _NARROW) != (node.op.name == _NARROW):
        return False
    shapes = [n.args[1].shape for n in (first, node)]  # type: ignore[union-attr]
    if any(len(s) != 2 or not all(isinstance(n, int) for n in s) for s in shapes):
        return False
    (rank, k), (n, _) = shapes
    return rank * (n + k) < n * k  # type: ignore[operator]


def _residual(node: Node) -> Any:
    return node.args[3] if len(node.args) > 3 else None
