"""Two graphs compared over exact arithmetic: no tolerance hides a difference."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from infopt.compiler.certification import exact_field, exact_functions, exact_moves
from infopt.compiler.certification.exact_tensor import NotExact, Residue
from infopt.compiler.certification.residue import HUGE, P, numbers
from infopt.compiler.graph import Graph, Node
from infopt.compiler.interpret import bind_dims, evaluate
from infopt.compiler.ops import CONST, INPUT

DECLARED_IN = (exact_field, exact_functions, exact_moves)  # importing them makes the rules known


def exact_difference(
    before: Graph,
    after: Graph,
    inputs: Sequence[Any],
    seed: int = 0,
    derived: Mapping[str, Node] | None = None,
) -> str | None:
    """None, or the first place where the graphs differ modulo P for these inputs.

    inputs   as for `interpret`: floating point values decide comparisons, integers are themselves
    seed     of the residues drawn for the floating point inputs
    derived  how constants of `after` come from those of `before` (PassContext.derived)

    Raises NotExact where an op of either graph has no exact meaning here.
    """
    expected = exact_results(before, inputs, seed)
    found = exact_results(after, inputs, seed, derived or {}, before.consts)
    for position, (e, f) in enumerate(zip(expected, found, strict=True)):
        reason = _difference(e, f)
        if reason is not None:
            return f"result {position} {reason}"
    return None


def exact_results(
    graph: Graph,
    inputs: Sequence[Any],
    seed: int = 0,
    derived: Mapping[str, Node] | None = None,
    origins: Mapping[str, torch.Tensor] | None = None,
) -> list[Any]:
    """Results, then updates. Floating point inputs become random residues, by name."""
    sizes = bind_dims(graph, inputs)
    values: dict[Node, Any] = {}
    for node, value in zip(graph.inputs, inputs, strict=False):
        name = node.attr("name")
        values[node] = value
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            values[node] = Residue.random(value, zlib.crc32(f"{seed} {name}".encode()))
    consts = {**(origins or {}), **graph.consts}

    def value_of(node: Node) -> Any:
        if node in values:
            return values[node]
        name = node.attr("name") if node.op is CONST else ""
        if node.op is CONST and name in (derived or {}):
            values[node] = value_of(derived[name])  # type: ignore[index]
        elif node.op is CONST:
            if origins is not None and name not in origins and consts[name].is_floating_point():
                raise NotExact(f"the constant {name}, of which the pass tells no origin")
            held = consts[name].detach()
            values[node] = Residue.of(held) if held.is_floating_point() else held
        else:
            for source in node.inputs:
                value_of(source)
            values[node] = evaluate(graph, node, values, sizes)
        return values[node]

    with torch.no_grad():
        for node in graph.nodes():
            if node.op is not INPUT:
                value_of(node)
    ends = [o for o in graph.outputs if isinstance(o, Node)] + [n for _, n in graph.updates]
    return [values[n] for n in ends]


def _difference(expected: Any, found: Any) -> str | None:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        wanted = f"{expected.dtype}{tuple(expected.shape)}"
        return f"is {found.dtype}{tuple(found.shape)}, expected {wanted}"
    e, f = _residues(expected), _residues(found)
    # a value that real arithmetic overflows is decided there
    wrong = (e != f) & _finite(expected) & _finite(found)
    if not bool(wrong.any()):
        return None
    place = tuple(torch.nonzero(wrong)[0].tolist())
    return (
        f"differs at {place} in {int(wrong.sum())} of {wrong.numel()} elements: {int(f[place])}, "
        f"expected {int(e[place])} modulo {P}"
    )


def _residues(value: torch.Tensor) -> torch.Tensor:
    return value.p if isinstance(value, Residue) else numbers(value, P)


def _finite(value: torch.Tensor) -> torch.Tensor:
    if not isinstance(value, Residue):
        return torch.ones(value.shape, dtype=torch.bool)
    return torch.isfinite(value.value) & (value.value.abs() <= HUGE)
