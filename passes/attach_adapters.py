"""linear(x, w) -> adapter_linear(linear(x, w), x, adapters, slots): room for adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from infopt.codegen.kernels.adapter_linear import adapter_linear
from infopt.codegen.kernels.rows import FLOATS
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.types import TensorType
from infopt.passes.batch_rows import batch_rows
from infopt.passes.layers import label_of, name_matches, names_of, weights_of

SLOTS = "adapter_slots"  # the input i64 [batch] that says which adapter each row has
_LINEAR = "aten.linear.default"


@dataclass(frozen=True)
class AttachAdapters(Pass):
    """linear(x, w) -> adapter_linear(linear(x, w), x, a, b, ranks, slots)

    What is added is that of no adapter yet: a, b and ranks are constants of zeros, which somebody
    writes to later (infopt.runtime.adapters). The slots are an input of the graph, of one number
    for each row of the batch; a graph without such an input stays as it is. Layers whose rows are
    not known to be those of the batch, in its order, get no room.

    rank, slots  how large adapters may be, and how many there may be
    layers       patterns of the layers' names: those of their weights, without "weight"
    """

    name: ClassVar[str] = "attach-adapters"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-attention",)

    rank: int = 16
    slots: int = 8
    layers: tuple[str, ...] = ("*",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        slots = next((n for n in graph.inputs if n.attr("name") == SLOTS), None)
        if slots is None:
            return graph
        rows = batch_rows(graph, slots.shape[0])
        tensors: dict[str, torch.Tensor] = {}
        changes: dict[Node, Node] = {}
        for node in graph.nodes():
            if node.op.name != _LINEAR or _has_room(graph, node):
                continue
            reason = self._refusal(node, rows)
            if reason is None:
                banks = self._banks(node, ctx)
                of_rows = _slots_of(node.args[0], slots, ctx.builder)  # type: ignore[arg-type]
                consts = (ctx.builder.const(n, TensorType.of(t)) for n, t in banks.items())
                changes[node] = ctx.builder.call(
                    adapter_linear, node, node.args[0], *consts, of_rows
                )
                tensors |= banks
                size = sum(t.nbytes for t in banks.values())
                told = f"room for {self.slots} adapters of rank {self.rank}, {size} bytes"
            ctx.site(label_of(node), reason is None, reason or told)
        return ctx.exchange(graph, changes).with_consts(tensors) if changes else graph

    def _refusal(self, node: Node, rows: set[Node]) -> str | None:
        x, (weight,) = node.args[0], weights_of(node)
        assert isinstance(x, Node)
        names = names_of(node)
        if not names:
            return "its weight is not a constant"
        layer = names[0].removesuffix("_weight")
        if not any(name_matches(layer, pattern) for pattern in self.layers):
            return "not chosen"
        if weight.dtype != x.dtype or x.dtype not in FLOATS:
            return f"its weight is {weight.dtype} and what it reads {x.dtype}"
        if not all(isinstance(n, int) for n in weight.shape):
            return f"its weight has open sizes, {weight.type}"
        return None if x in rows else "the rows that it reads are not known to be the batch's"

    def _banks(self, node: Node, ctx: PassContext) -> dict[str, torch.Tensor]:
        """The adapters of a layer, all zeros, by the names that `bank_names` gives."""
        (weight,), (name,) = weights_of(node), names_of(node)
        n, k = (int(size) for size in weight.shape)
        shapes = (self.slots, self.rank, k), (self.slots, self.rank, n), (self.slots,)
        dtypes = weight.dtype, weight.dtype, torch.int64
        banks = {}
        for bank, shape, dtype in zip(bank_names(name), shapes, dtypes, strict=True):
            banks[bank] = torch.zeros(shape, dtype=dtype)
            # of no weight: those of the model can be exchanged as before
            ctx.derive(bank, ctx.builder.call("aten.zeros.default", shape, dtype=dtype))
        return banks


def bank_names(weight: str) -> tuple[str, str, str]:
    """What the constants a, b and ranks of a layer are called, by the name of its weight."""
    return f"{weight}_adapters_a", f"{weight}_adapters_b", f"{weight}_adapters_ranks"


def _has_room(graph: Graph, node: Node) -> bool:
    return any(u.op.name == "adapter_linear" and u.args[0] is node for u in graph.users(node))


def _slots_of(x: Node, slots: Node, o: Builder) -> Node:
    """A number for each first index of x, where neighbours there share a row of the batch."""
    batch, first = slots.shape[0], x.shape[0]
    if first == batch:
        return slots
    each = first // batch if isinstance(first, int) and isinstance(batch, int) else first / batch
    return o.reshape(o.expand(o.reshape(slots, [batch, 1]), [batch, each]), [first])
