"""Graphs as text, for people: one line per node, and the difference of two graphs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch

from infopt.compiler.graph import Graph, Node, type_text
from infopt.compiler.ops import CONST, INPUT
from infopt.compiler.types import dtype_name

_CONTEXT = 2  # unchanged lines shown around a difference


def text(graph: Graph) -> str:
    """The whole graph: a header with stage, dims and scalars, then `%3 f32[s0, 384] = op(...)`."""
    names = {n: f"%{i}" for i, n in enumerate(graph.nodes())}
    lines = [f"graph, stage {graph.stage.name}, {len(names)} nodes"]
    lines += [f"dim {d}" for d in graph.dims]
    lines += [f"scalar {s}" for s in graph.scalars]
    width = 0
    bodies = []
    for node in graph.nodes():
        body = _line(node, names, graph)
        users = ", ".join(names[u] for u in graph.users(node)) or "-"
        results = [f"result {i}" for i, o in enumerate(graph.outputs) if o is node]
        results += [f"new value of input {i}" for i, n in graph.updates if n is node]
        bodies.append((body, ", ".join(([users] if users != "-" else []) + results) or "nobody"))
        width = min(max(width, len(body)), 88)
    lines += [f"{body:<{width}}  # used by {used}" for body, used in bodies]
    lines += _ends(graph, names)
    return "\n".join(lines)


def diff(before: Graph, after: Graph) -> str:
    """What changed: lines removed (-) and added (+) with some context, and the counts.

    Nodes are matched by what they do, in order, not by their numbers. A matched node keeps the
    number it had before; new ones are %+0, %+1 ...; a node that only reads other values now shows
    as changed.
    """
    if before is after:
        return "no difference"
    old, new = before.nodes(), after.nodes()
    names_old = {n: f"%{i}" for i, n in enumerate(old)}
    names_new: dict[Node, str] = {}
    matcher = difflib.SequenceMatcher(
        None, [_signature(n) for n in old], [_signature(n) for n in new], autojunk=False
    )
    for a, b, size in matcher.get_matching_blocks():
        names_new.update({new[b + i]: names_old[old[a + i]] for i in range(size)})
    fresh = (n for n in new if n not in names_new)
    names_new.update({n: f"%+{i}" for i, n in enumerate(list(fresh))})
    lines_old = [_line(n, names_old, before) for n in old] + _ends(before, names_old)
    lines_new = [_line(n, names_new, after) for n in new] + _ends(after, names_new)
    body = list(difflib.unified_diff(lines_old, lines_new, n=_CONTEXT, lineterm=""))[2:]
    removed = sum(line.startswith("-") for line in body)
    added = sum(line.startswith("+") for line in body)
    counts = f"{len(old)} -> {len(new)} nodes, {removed} lines removed, {added} added"
    if before.stage != after.stage:
        counts += f", stage {before.stage.name} -> {after.stage.name}"
    return "\n".join([counts, *body])


def _signature(node: Node) -> str:
    return f"{node.op.name} {_attrs(node)} {type_text(node.type)}"


def _line(node: Node, names: Mapping[Node, str], graph: Graph) -> str:
    left = f"{names[node]} {type_text(node.type)} = "
    if node.op is INPUT:
        kind = "weight" if dict(node.attrs).get("weight") else "input"
        return f"{left}{kind} {node.attr('name')}"
    if node.op is CONST:
        return f"{left}const {node.attr('name')}{_value(graph.consts.get(node.attr('name')))}"
    arguments = [_arg(a, names) for a in node.args]
    return f"{left}{node.op.name}({', '.join(arguments + _attrs(node))})"


def _arg(arg: Any, names: Mapping[Node, str]) -> str:
    if isinstance(arg, tuple):
        return "[" + ", ".join(_arg(a, names) for a in arg) + "]"
    return "None" if arg is None else names[arg]


def _attrs(node: Node) -> list[str]:
    """Attributes as name=value; those that hold their default are left out."""
    defaults = {p.name: p.default for p in node.op.parameters}
    shown = []
    for name, value in node.attrs:
        default = defaults.get(name)
        default = tuple(default) if isinstance(default, list) else default
        if type(default) is type(value) and repr(default) == repr(value):
            continue
        shown.append(f"{name}={_plain(value)}")
    return shown


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    if isinstance(value, str):
        return f'"{value}"'
    return dtype_name(value) if isinstance(value, torch.dtype) else str(value)


def _value(tensor: torch.Tensor | None) -> str:
    """The value of a constant of one element; larger ones would only be noise."""
    if tensor is None or tensor.numel() != 1 or tensor.is_meta:
        return ""
    return f" ({tensor.item()})"


def _ends(graph: Graph, names: Mapping[Node, str]) -> list[str]:
    outputs = [names[o] if isinstance(o, Node) else _plain(o) for o in graph.outputs]
    lines = [f"return {', '.join(outputs)}"]
    lines += [f"input {i} becomes {names[n]}" for i, n in graph.updates]
    return lines
