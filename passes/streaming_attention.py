"""How causal attention streams, over keys and values that are kept, and numbers of places."""

from __future__ import annotations

from dataclasses import replace

import torch

from infopt.codegen.kernels.kv_cache import kv_append, kv_attention
from infopt.compiler.errors import CannotStream
from infopt.compiler.graph import Node
from infopt.compiler.types import TensorType
from infopt.passes.streaming import Flow, Store, Streaming


def attention(s: Streaming, node: Node, twin: Node) -> Flow:
    """Queries of this hop over the keys and values of all places up to theirs.

    A delay is rounded up to whole hops: then a step brings either a hop of places or none, and the
    store holds place 0 first.
    """
    q, k, v, mask = node.args
    if not node.attr("is_causal"):
        raise CannotStream("every position attends to all of time")
    if mask is not None or node.attr("dropout_p"):
        raise CannotStream("causal attention with a further mask, or with dropout")
    if any(a not in s.flows for a in (q, k, v)) or q.tensor_type.rank != 4:
        raise CannotStream("expected queries, keys and values [batch, heads, time, width]")
    flows = s.aligned([s.flows[a] for a in (q, k, v)])
    if any(f.axis != 2 for f in flows):
        raise CannotStream("its time is not the axis before the last")
    hop = flows[0].hop
    late = -(-flows[0].delay // hop)
    flows = [s.delayed(f, late * hop) for f in flows]
    room, o = s.room(hop), s.o
    batch = int(q.shape[0])
    step = o.call("aten.expand.default", o.sub(s.steps(), late), (batch,))
    starts = o.mul(o.clamp(step, min=0), hop)
    counts = (
        o.mul(o.to(o.ge(step, 0), torch.int64), hop) if late else s.const(torch.full((batch,), hop))
    )
    stores = []
    for flow in flows[1:]:
        heads, width = flow.node.shape[1], flow.node.shape[3]
        past = s.store(TensorType.dense((batch, heads, room, width), flow.node.dtype))
        value = o.call(kv_append, past, flow.node, starts, counts)
        s.stores.append(Store(past, value, in_place=True))
        stores.append(value)
    scale = node.attr("scale")
    scale = float(q.shape[3]) ** -0.5 if scale is None else float(scale)
    made = o.call(kv_attention, flows[0].node, *stores, starts, scale=scale)
    return replace(flows[0], node=made)


def numbered(s: Streaming, node: Node, twin: Node) -> Flow:
    """arange: the numbers of this hop's places."""
    attrs = dict(node.attrs)
    hop = int(twin.shape[0]) - int(node.shape[0])  # type: ignore[call-overload]
    start, step = attrs.get("start", 0), attrs.get("step", 1)
    if not all(isinstance(n, int) for n in (start, step)) or node.dtype.is_complex:
        raise CannotStream("numbers that are not whole")
    if any(attrs[n] != dict(twin.attrs)[n] for n in attrs if n != "end"):
        raise CannotStream("numbers that begin elsewhere in a longer signal")
    numbers = s.o.add(s.o.mul(s.steps(), hop * step), s.const(start + step * torch.arange(hop)))
    return Flow(numbers if node.dtype == torch.int64 else s.o.to(numbers, node.dtype), 0)


def table_rows(s: Streaming, node: Node, twin: Node) -> Flow:
    """table[a : a + length]: the rows of this hop's places, as long as there are rows."""
    (table,) = node.inputs
    axis = node.attr("dim") % node.tensor_type.rank
    hop = int(twin.shape[axis]) - int(node.shape[axis])  # type: ignore[call-overload]
    start, rows = node.attr("start") or 0, int(table.shape[axis])  # type: ignore[call-overload]
    if start < 0 or start != (twin.attr("start") or 0) or node.attr("step") != 1:
        raise CannotStream("rows that are counted from the table's end, or not one after another")
    s.most((rows - start) // hop)
    numbers = s.o.add(s.o.mul(s.steps(), hop), s.const(start + torch.arange(hop)))
    numbers = s.o.clamp(numbers, max=rows - 1)
    return Flow(s.o.call("aten.index_select.default", table, axis, numbers), axis)
