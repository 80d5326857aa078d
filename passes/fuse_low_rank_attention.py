"""attention over products of thin factors -> low_rank_attention: rebuilt a head at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from infopt.codegen.kernels.low_rank_attention import low_rank_attention
from infopt.codegen.kernels.rows import ceil_div
from infopt.compiler.cost import Cost, cost_of, node_seconds, seconds
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.types import hint

_PRODUCTS = ("aten.linear.default", "linear_act", "narrow_linear")
_FIRSTS = ("aten.linear.default", "narrow_linear")
_QUERIES_OF_BLOCK = 128  # of a GPU's program, which rebuilds all keys and values for them


@dataclass(frozen=True)
class FuseLowRankAttention(Pass):
    """attention(heads of linear(q, u), ...) -> low_rank_attention(q, k, v, u, ...)

    Queries, keys and values of all heads are then never in memory (FlashSVD). Declined where one of
    the three is no product of a thin factor, or is read elsewhere too, and where it does not pay.
    """

    name: ClassVar[str] = "fuse-low-rank-attention"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-attention",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        changes: dict[Node, Node] = {}
        for node in graph.nodes():
            if node.op.name != "attention":
                continue
            products = [_second_factor(x) for x in node.args[:3]]  # type: ignore[arg-type]
            if not any(products):
                continue
            made = self._fused(graph, node, products, ctx)
            if isinstance(made, str):
                ctx.site(node, False, made)
                continue
            before = sum(node_seconds(n, ctx.target, graph.dims) for n in (*products, node) if n)
            after = _fused_seconds(made, graph, ctx)
            told = f"one op takes {after * 1e6:.4g} us, as it is {before * 1e6:.4g} us"
            pays = after < before
            ctx.site(node, pays, told if pays else f"it does not pay: {told}", before - after)
            if pays:
                changes[node] = made
        return ctx.exchange(graph, changes) if changes else graph

    def _fused(
        self, graph: Graph, node: Node, products: list[Node | None], ctx: PassContext
    ) -> Node | str:
        """The op in place of all, or why there is none."""
        read: list[tuple] = []  # (factor, up, bias) of queries, keys and values
        for name, value, product in zip("qkv", node.args, products, strict=False):
            if product is None:
                return f"{name} is no product of a thin factor"
            rows = value.args[0]  # type: ignore[union-attr]
            for way in (value, rows, product):
                if graph.is_output(way) or len(graph.users(way)) > 1:  # type: ignore[arg-type]
                    return f"{name} is read elsewhere too"
            read.append(product.args[:3])
        factors, ups, biases = zip(*read, strict=True)
        q, k = node.args[:2]
        attrs = {"heads": q.shape[1], "kv_heads": k.shape[1]}  # type: ignore[union-attr]
        attrs |= {n: node.attr(n) for n in ("scale", "causal", "window")}
        try:
            made = ctx.builder.call(
                low_rank_attention, *factors, *ups, *biases, node.args[3], **attrs
            )
        except CannotInfer as error:
            return str(error)
        return made if made.shape == node.shape else f"the result would be {made.type}"


def _second_factor(heads: Node) -> Node | None:
    """linear(factor [B, T, R], up) behind heads [B, H, T, D] that it is cut into, if R is thin."""
    if heads.op.name != "aten.permute.default" or tuple(heads.attr("dims")) != (0, 2, 1, 3):
        return None
    rows = heads.args[0]
    if not isinstance(rows, Node) or rows.op.name != "aten.reshape.default":
        return None
    product = rows.args[0]
    if not isinstance(product, Node) or product.op.name not in _PRODUCTS:
        return None
    if product.attrs and dict(product.attrs).get("activation", "none") != "none":
        return None
    if any(a is not None for a in product.args[3:]) or product.tensor_type.rank != 3:
        return None
    factor, up = product.args[:2]
    assert isinstance(factor, Node) and isinstance(up, Node)
    if factor.op.name not in _FIRSTS or not factor.dtype == up.dtype == product.dtype:
        return None
    thin, wide = up.shape[1], up.shape[0]
    whole = (*product.shape[:2], rows.shape[2] * rows.shape[3])
    if not (isinstance(thin, int) and isinstance(wide, int) and thin < wide):
        return None
    return product if product.shape == whole and rows.shape[:2] == product.shape[:2] else None


def _fused_seconds(made: Node, graph: Graph, ctx: PassContext) -> float:
    """Estimated time of the fused op. A CPU's task is one key head, a GPU's a block of queries,
    which rebuilds all keys and values again."""
    cost, dims = cost_of(made), graph.dims
    if ctx.target.kind == "cpu":
        tasks = hint(made.shape[0], dims) * made.attr("kv_heads")
        cores = ctx.target.cores
        flops = hint(cost.flops, dims) * ceil_div(tasks, cores) * cores // tasks
        return seconds(Cost(flops, cost.bytes, cost.launches), ctx.target, made, dims)
    blocks = ceil_div(made.shape[2], _QUERIES_OF_BLOCK)
    for x, up in zip(made.args[1:3], made.args[4:6], strict=True):
        rebuilt = 2 * x.tensor_type.numel * up.shape[0]  # type: ignore[union-attr]
        cost += Cost(flops=(blocks - 1) * rebuilt)
    return seconds(cost, ctx.target, made, dims)
