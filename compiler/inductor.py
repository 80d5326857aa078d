"""infopt passes inside Inductor, through its hooks for custom passes.

    torch._inductor.config.post_grad_custom_pre_pass = infopt.InductorPass(MyRule())

The other direction needs no file: FxPass takes a CustomGraphPass of Inductor's.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx

from infopt.compiler.errors import TraceDeclined
from infopt.compiler.graph import Graph
from infopt.compiler.pipeline import Pass, PassContext, Pipeline
from infopt.compiler.report import Report
from infopt.compiler.target import Target
from infopt.compiler.tracing.trace import from_fx

log = logging.getLogger(__name__)
aten = torch.ops.aten


class InductorPass(CustomGraphPass):
    """Passes of infopt as one pass over Inductor's graph: aten operators, decomposed by then.

    The result is verified as everywhere; operators of infopt's own become their references' aten
    calls. A program that cannot become a Graph is left as it is, with the reason in the log.
    `report` tells the sites of the last program.
    """

    def __init__(self, *passes: Pass) -> None:
        self.pipeline = Pipeline(passes, alone=True)
        self.report = Report()

    def __call__(self, graph: fx.Graph) -> None:
        self.report = Report()
        try:
            before = from_fx(_copy(graph))
        except TraceDeclined as reason:
            self.report.declined = str(reason)
            log.info("Inductor's graph is left as it is: %s", reason)
            return
        after = self.pipeline.run(before, PassContext(Target.detect(), report=self.report))
        if after.key != before.key:
            _replace(graph, after)

    def uuid(self) -> Any:
        """The passes' content; None, so that Inductor caches nothing, where one has no content."""
        opaque = any(p.content.opaque for p in self.pipeline.passes)
        return None if opaque else self.pipeline.key


def _copy(graph: fx.Graph) -> fx.GraphModule:
    """The graph in a module of its own: a module takes possession of the graph it is given."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return fx.GraphModule(graph.owning_module or torch.nn.Module(), copy)


def _replace(graph: fx.Graph, after: Graph) -> None:
    """Put what `after` computes into Inductor's graph, whose inputs and output node stay."""
    [output] = [n for n in graph.nodes if n.op == "output"]
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    tensors = [n for n in inputs if isinstance(n.meta.get("val"), torch.Tensor)]
    sizes = [n for n in inputs if isinstance(n.meta.get("val"), torch.SymInt | int)]
    sizes = [n for n in sizes if n.users or isinstance(n.meta["val"], torch.SymInt)]
    old = [n for n in graph.nodes if n.op not in ("placeholder", "output")]
    program = _decomposed(after, tensors + sizes)
    values: dict[fx.Node, Any] = dict(
        zip((n for n in program.graph.nodes if n.op == "placeholder"), tensors + sizes, strict=True)
    )
    owner = graph.owning_module
    with graph.inserting_before(output):
        for node in program.graph.nodes:
            if node.op == "output":
                flat = fx.map_arg(node.args[0], values.__getitem__)
            elif node.op == "get_attr":
                values[node] = _attribute(graph, owner, getattr(program, str(node.target)))
                values[node].meta.update(node.meta)
            elif node.op != "placeholder":
                values[node] = graph.node_copy(node, values.__getitem__)
        count = len(after.outputs)
        for (index, _), value in zip(after.updates, flat[count:], strict=True):
            made = graph.call_function(aten.copy_.default, (tensors[index], value))
            made.meta["val"] = tensors[index].meta["val"]
    results = iter(flat[:count])
    [structure] = output.args
    output.args = (type(structure)(next(results) for _ in structure),)
    for node in reversed(old):
        graph.erase_node(node)
    graph.lint()


def _decomposed(after: Graph, inputs: list[fx.Node]) -> fx.GraphModule:
    """The graph in the operators that Inductor lowers, with fake values in its own fake mode."""
    values = [n.meta["val"] for n in inputs]
    mode = next(v.fake_mode for v in values if isinstance(v, FakeTensor))
    with mode, enable_python_dispatcher(), torch.no_grad():
        traced = make_fx(
            after.to_fx(), select_decomp_table(), tracing_mode="real", _allow_non_fake_inputs=True
        )
        return traced(*values)


def _attribute(graph: fx.Graph, owner: Any, tensor: torch.Tensor) -> fx.Node:
    """A constant of the program as an attribute of the module that owns the graph."""
    number = 0
    while hasattr(owner, f"_infopt_constant{number}"):
        number += 1
    name = f"_infopt_constant{number}"
    owner.register_buffer(name, tensor)
    return graph.get_attr(name)
