"""linear(linear(x, v), u) -> linear_chain(x, v, u): nothing between thin factors is stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from infopt.codegen.kernel import find_emitter
from infopt.codegen.kernels.linear import FEW
from infopt.codegen.kernels.linear_chain import chain_weights, rows_of_task
from infopt.compiler.cost import cost_of, node_seconds, seconds
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.types import hint
from infopt.passes.low_rank_chains import Chain, chains, residual_of


@dataclass(frozen=True)
class FuseLowRank(Pass):
    """linear(linear(x, v), u) -> linear_chain(x, v, u), an MLP of such factors as one chain of four
    products, with a gate of five or six

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
            if node in taken:
                continue
            judged = None
            for chain in chains(graph, node):
                judged = made, reason, gain = _judge(graph, ctx, chain)
                if made is not None:
                    changes[node] = made
                    taken.update(chain.nodes)
                    break
            if judged is not None:
                ctx.site(node, made is not None, reason, gain)
        return ctx.exchange(graph, changes) if changes else graph


def _judge(graph: Graph, ctx: PassContext, chain: Chain) -> tuple[Node | None, str, float | None]:
    """(the products as one op, what it is, the seconds it saves), or None and why not."""
    *inside, last = chain.nodes
    for inner in inside:
        if graph.use_count(inner) > 1 or graph.is_output(inner):
            return None, f"{inner!r} is read elsewhere too", None
        if residual_of(inner) is not None:
            return None, f"{inner!r} ends with a residual", None
    if chain.multiply is not None and chain.multiply.dtype != torch.float32:
        return None, "gate and up are rounded before they are multiplied", None
    try:
        made = chain.as_one(ctx.builder)
    except CannotInfer as error:
        return None, str(error), None
    if made.type != last.type:
        return None, f"the chain gives {made.type}, expected {last.type}", None
    emitter, missing = find_emitter(made, ctx.target)
    if emitter is None:
        return None, missing, None
    rows = hint(chain.x.tensor_type.numel, graph.dims) // chain.x.shape[-1]  # type: ignore[operator]
    least = 32 * ctx.target.cores if ctx.target.kind == "cpu" else FEW + 1
    if rows < least:
        return None, f"{rows} rows are too few to share out, expected {least} or more", None
    before = sum(node_seconds(n, ctx.target, graph.dims) for n in chain.nodes)
    after = _chain_seconds(graph, ctx, made, rows)
    count = len(chain_weights(made))
    told = f"{count} products in {after * 1e6:.4g} us, one by one {before * 1e6:.4g} us"
    if after > before:
        return None, f"it does not pay: {told}", before - after
    return made, told, before - after


def _chain_seconds(graph: Graph, ctx: PassContext, made: Node, rows: int) -> float:
    """The estimate of the chain: a task is a part of the rows, and reads all weights."""
    target, cost = ctx.target, cost_of(made)
    flops, traffic = hint(cost.flops, graph.dims), hint(cost.bytes, graph.dims)
    tasks = -(-rows // rows_of_task(made, rows, target))
    turns = -(-tasks // target.cores) * target.cores  # with those in which the last cores idle
    size = sum(int(w.numel) * w.dtype.itemsize for w in chain_weights(made))
    again = (tasks - 1) * size if size > target.caches[-1] else 0
    spread = replace(cost, flops=flops * turns // tasks, bytes=traffic + again)
    return seconds(spread, target, made)
