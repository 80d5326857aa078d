"""Which values have the rows of a program's batch in front: one after the other, in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy

from infopt.compiler.graph import Graph, Node
from infopt.compiler.ops import CONST, GETITEM, INPUT
from infopt.compiler.types import Size
from infopt.passes.slicing_rules import BATCH, Axis, cut_operands

# Attention over a cache has the rows of its queries.
_OF_QUERIES = ("kv_attention", "attention_part")
# Ops that leave other axes than the one they name as they are, in their first argument.
_ALONG = ("aten.gather.", "aten.split", "aten.chunk.", "aten.unbind.", "aten.tensor_split.")
_PRODUCTS = ("aten.matmul.default", "aten.bmm.default")


def batch_rows(graph: Graph, count: Size) -> set[Node]:
    """The values [count * n, ...] of which n neighbours belong to each row of the batch.

    Those are the inputs whose first size is `count`, and what is made of them by ops that keep
    parts of the first axis apart. With one row, all others belong to it.
    """
    axis = Axis(BATCH, count) if isinstance(count, sympy.Symbol) else _Fixed(BATCH, count)
    found: set[Node] = set()
    for node in graph.nodes():
        if node.op is INPUT:
            follows = node.tensor_type.rank > 0 and node.shape[0] == count
        else:
            follows = node.op is not CONST and _follows(node, axis, found)
        if follows or count == 1:
            found.add(node)
    return found


@dataclass(frozen=True)
class _Fixed(Axis):
    """An axis of a fixed number of parts; other sizes may be open."""

    def holds(self, value: Node) -> bool:
        if value.tensor_type.rank == 0:
            return False
        first: Any = value.shape[0]
        return isinstance(first, int) and first > 0 and first % self.count == 0


def _follows(node: Node, axis: Axis, found: set[Node]) -> bool:
    name, first = node.op.name, node.args[0] if node.args else None
    if name.startswith((*_OF_QUERIES, *_ALONG, *_PRODUCTS)) or node.op is GETITEM:
        if name.startswith(_ALONG) and node.attr("dim") % first.tensor_type.rank == 0:  # type: ignore[union-attr]
            return False
        return first in found and (isinstance(node.type, tuple) or axis.holds(node))
    cut = cut_operands(node, axis)
    return cut is not None and not cut.isdisjoint(found)
