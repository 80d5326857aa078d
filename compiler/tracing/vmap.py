"""torch.vmap in dynamo's graph -> the aten operators that its batching rules make of it.

Tracing before dispatch happens above functorch, so it would keep the calls that add and remove
batch dimensions. Each part of a graph between them is traced on its own, below functorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._functorch import predispatch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from infopt.compiler.errors import TraceDeclined


def without_vmap(module: fx.GraphModule, mode: FakeTensorMode) -> fx.GraphModule:
    """The same program without function transforms, as far as they are vmap's.

    Raises TraceDeclined where a constant is batched: it would be lost.
    """
    if not any(n.target is predispatch._vmap_increment_nesting for n in module.graph.nodes):
        return module
    predispatch.lazy_load_decompositions()
    graph = fx.Graph()
    made: dict[fx.Node, Any] = {}
    part: list[fx.Node] = []
    depth = 0
    for node in module.graph.nodes:
        if node.target is predispatch.lazy_load_decompositions:
            continue
        depth += node.target is predispatch._vmap_increment_nesting
        if depth:
            part.append(node)
            depth -= node.target is predispatch._vmap_decrement_nesting
            if not depth:
                _inline(module, part, graph, made, mode)
                part = []
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
    return fx.GraphModule(module, graph)


def _inline(
    module: fx.GraphModule,
    part: list[fx.Node],
    graph: fx.Graph,
    made: dict[fx.Node, Any],
    mode: FakeTensorMode,
) -> None:
    """Append what a part of the program does; `made` then has the values read after it."""
    inside = set(part)
    given = list(dict.fromkeys(n for p in part for n in p.all_input_nodes if n not in inside))
    results = [p for p in part if any(user not in inside for user in p.users)]
    alone = fx.Graph()
    own: dict[fx.Node, fx.Node] = {n: alone.placeholder(n.name) for n in given}
    for node in part:
        own[node] = alone.node_copy(node, own.__getitem__)
    alone.output(tuple(own[r] for r in results))
    values = [n.meta.get("example_value") for n in given]
    with mode, torch.no_grad():
        run = fx.GraphModule(module, alone)
        traced = make_fx(run, _allow_non_fake_inputs=True)(*values)
    if any(n.op == "get_attr" for n in traced.graph.nodes):
        raise TraceDeclined("the program uses vmap over a constant")
    arguments = [n for n in traced.graph.nodes if n.op == "placeholder"]
    map = {a: made[n] for a, n in zip(arguments, given, strict=True)}
    found = graph.graph_copy(traced.graph, map)
    made.update(zip(results, found, strict=True))  # type: ignore[arg-type]
