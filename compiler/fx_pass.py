"""Ordinary fx passes as infopt passes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphModulePass, CustomGraphPass

from infopt.compiler.accuracy import Accuracy, Exact
from infopt.compiler.content import Content, content_of
from infopt.compiler.errors import ContractBroken
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.ops import INPUT, from_overload, known_ops
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.types import TensorType

_EXACT = Exact()
FxFunction = (
    Callable[[fx.GraphModule], "fx.GraphModule | None"] | CustomGraphPass | CustomGraphModulePass
)


@dataclass(frozen=True, init=False)
class FxPass(Pass):
    """An `fx.GraphModule -> fx.GraphModule` function (or one that edits in place) as a pass.

    A CustomGraphPass or CustomGraphModulePass of Inductor's is one too; its uuid is its content.
    It sees aten ops and infopt's references as call_function nodes, and may use those and any other
    torch operator overload. The result is type-inferred and verified like any pass.
    """

    function: FxFunction

    def __init__(
        self, function: FxFunction, accuracy: Accuracy = _EXACT, stage: Stage = Stage.NORMALIZE
    ) -> None:
        for name, value in (("function", function), ("accuracy", accuracy), ("stage", stage)):
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:  # type: ignore[override]
        name = getattr(self.function, "__name__", None) or type(self.function).__name__
        return "fx-" + "-".join(re.findall(r"[a-z0-9]+", name.lower()) or ["pass"])

    @cached_property
    def content(self) -> Content:
        """The function's own content: source, byte code, closure and defaults."""
        return content_of(type(self), self.function, self.accuracy, int(self.stage))

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        module = graph.to_fx()
        before = [n.name for n in module.graph.nodes]
        # Inductor's passes over a Graph get no module; everything else may return one
        given = module.graph if isinstance(self.function, CustomGraphPass) else module
        function: Callable[[Any], Any] = self.function  # type: ignore[assignment]
        changed = function(given)
        module = module if changed is None else changed
        if not isinstance(module, fx.GraphModule):
            raise ContractBroken(
                f"{self.name} returned {type(module).__name__}, expected a GraphModule"
            )
        result = from_references(module, graph, ctx.builder)
        applied = [n.name for n in module.graph.nodes] != before or result.key != graph.key
        ctx.site("graph", applied, "" if applied else "left the program as it was")
        return result if result.key != graph.key else graph


def from_references(module: fx.GraphModule, like: Graph, o: Builder) -> Graph:
    """Back from Graph.to_fx's form: call_function nodes of references or overloads."""
    ops = {op.reference: op for op in known_ops()}
    values: dict[fx.Node, Any] = {}
    consts = dict(like.consts)
    inputs = iter([*like.inputs, *like.scalars])

    def look_up(arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return values[arg]
        return type(arg)(look_up(a) for a in arg) if isinstance(arg, list | tuple) else arg

    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(inputs)
        elif node.op == "get_attr":
            tensor = getattr(module, str(node.target))
            name = str(node.target)
            consts[name] = tensor
            values[node] = _const(o, name, tensor, like)
        elif node.op == "output":
            return _finish(node, look_up, like, consts)
        else:
            values[node] = _call(node, ops, look_up, o)
    raise ContractBroken("the fx pass removed the output")


def _const(o: Builder, name: str, tensor: torch.Tensor, like: Graph) -> Node:
    for known in like.nodes():
        if known.op.name == "const" and known.attr("name") == name:
            return known
    return o.const(name, TensorType.of(tensor))


def _call(node: fx.Node, ops: dict, look_up: Callable[[Any], Any], o: Builder) -> Any:
    args = look_up(node.args)
    kwargs = {k: look_up(v) for k, v in node.kwargs.items()}
    target = node.target
    if target is torch.ops.aten.sym_size.int:
        return args[0].shape[args[1]]
    if target in ops:
        return o.call(ops[target], *args, **kwargs)
    if isinstance(target, torch._ops.OpOverload):
        return o.call(from_overload(target), *args, **kwargs)
    if getattr(target, "__name__", "") == "getitem" and isinstance(args[0], Node):
        return o.getitem(args[0], args[1])
    if not any(isinstance(a, Node) for a in args):
        assert callable(target)
        return target(*args, **kwargs)  # arithmetic on sizes
    raise ContractBroken(f"the fx pass left {node.format_node()}; use torch.ops overloads")


def _finish(node: fx.Node, look_up: Callable[[Any], Any], like: Graph, consts: dict) -> Graph:
    flat = look_up(node.args[0])
    count = len(like.outputs)
    if len(flat) != count + len(like.updates):
        raise ContractBroken(f"the fx pass changed the number of results to {len(flat)}")
    updates = tuple((i, n) for (i, _), n in zip(like.updates, flat[count:], strict=True))
    graph = replace(like, outputs=tuple(flat[:count]), updates=updates, consts=consts)
    assert all(n.op is INPUT for n in graph.inputs)
    return graph.with_consts({})
