"""Where the constants of a finished graph come from: the model's parameters, what was folded from
them, or something no pass explained."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch

from infopt.codegen.lower import LoweringDeclined, lower
from infopt.compiler.graph import Graph, Node
from infopt.compiler.infer import Builder
from infopt.compiler.ops import CONST
from infopt.compiler.target import Target
from infopt.compiler.tracing.export import Exported
from infopt.runtime.manifest import WeightsEntry
from infopt.runtime.plan import Plan
from infopt.runtime.swap import PLAN, is_read, weight_type

# What passes make of weights in these dtypes is data: no rewrite looks at it.
_STORED = (torch.int8, torch.uint8)


@dataclass(frozen=True)
class Provenance:
    """entry: as artifacts store it. plan: makes `entry.made` from `entry.made_from`, or None."""

    entry: WeightsEntry
    plan: Plan | None


def provenance(
    exported: Exported, graph: Graph, derived: Mapping[str, Node], chosen: Set[str] = frozenset()
) -> Provenance:
    """exported: the model as traced, its tensors still in it. graph: the finished one. chosen:
    what of `derived` holds for the present values alone (PassContext.held)."""
    aliases = _aliases(exported.parameters)
    names = {c: aliases.get(p, p) for c, p in exported.names.items()}
    made, fixed = {}, {}
    direct: dict[str, str] = {}
    for name, tensor in graph.consts.items():
        if name in exported.graph.consts and tensor is exported.graph.consts[name]:
            if name in names:  # the rest are tensors written into the model's code
                direct[name] = names[name]
        elif name not in derived:
            fixed[name] = "was made by a pass that does not say from what (PassContext.derive)"
        else:
            reads = _constants(derived[name])
            if any(c in names for c in reads):
                if all(c in names for c in reads):
                    made[name] = derived[name]
                else:
                    fixed[name] = "was folded from parameters and from a tensor of the code"
    sources = sorted({c for expression in made.values() for c in _constants(expression)})
    plan = None
    if made:
        try:
            plan = _plan(made, {c: exported.graph.consts[c] for c in sources})
        except LoweringDeclined as declined:
            fixed.update(dict.fromkeys(made, f"was folded, and not by torch calls: {declined}"))
            made, sources = {}, []
    held = {
        names[c]
        for name, node in derived.items()
        if name in chosen
        or (is_read(node.dtype, node.tensor_type.numel) and node.dtype not in _STORED)
        for c in _constants(node)
        if c in names
    }
    entry = WeightsEntry(
        parameters={
            n: weight_type(t, n in held) for n, t in exported.parameters.items() if n not in aliases
        },
        aliases=aliases,
        direct=direct,
        plan=PLAN if plan is not None else None,
        made=tuple(made),
        made_from=tuple(names[c] for c in sources),
        fixed=fixed,
        states={names[n]: i for i, n in enumerate(exported.state_names)},
    )
    return Provenance(entry, plan)


def _constants(expression: Node) -> set[str]:
    found, stack, seen = set(), [expression], set()
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            if node.op is CONST:
                found.add(node.attr("name"))
            stack.extend(node.inputs)
    return found


def _plan(made: Mapping[str, Node], sources: Mapping[str, torch.Tensor]) -> Plan:
    """Torch calls from the sources, as inputs, to what was made of them."""
    o = Builder()
    consts: dict[str, Node] = {}
    images: dict[Node, Node] = {}

    def image(arg: Any) -> Any:
        if isinstance(arg, tuple):
            return tuple(map(image, arg))
        if not isinstance(arg, Node):
            return arg
        if arg not in images:
            if arg.op is CONST:
                name = arg.attr("name")
                images[arg] = consts.setdefault(name, o.input(name, arg.tensor_type))
            else:
                images[arg] = Node(arg.op, image(arg.args), arg.attrs, arg.type, arg.serial)
        return images[arg]

    outputs = tuple(image(node) for node in made.values())
    graph = Graph(tuple(consts[name] for name in sources), outputs)
    return lower(graph, Target.parse("cpu:scalar"), shipped=False, generated=False).plan


def _aliases(parameters: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Further names of memory that has a name -> the first one."""
    first: dict[Any, str] = {}
    found = {}
    for name, tensor in parameters.items():
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        main = first.setdefault(key, name) if tensor.numel() else name
        if main != name:
            found[name] = main
    return found
