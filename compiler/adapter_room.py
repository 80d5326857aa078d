"""Room for adapters: an input for the slots of a batch's rows, and which constants belong to which
layer of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from infopt.compiler.adapters import Adapters
from infopt.compiler.errors import BadOption
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.report import Report
from infopt.compiler.tracing.export import Argument, Exported
from infopt.compiler.types import TensorType
from infopt.passes.attach_adapters import SLOTS, AttachAdapters, bank_names
from infopt.runtime.adapters import ARGUMENT, Layer, Room
from infopt.runtime.structure import Leaf


def with_slots(exported: Exported, leaf: int, at: int | None = None) -> Exported:
    """The program with one more keyword argument, the i64 slot number of each row of its batch:
    the first size of its first input.

    leaf: the number of leaves of its arguments so far. at: which input of the graph it becomes;
    None: the last of the caller's tensors. Raises BadOption where there is no batch.
    """
    graph = exported.graph
    count = len(graph.inputs) - len(exported.state)
    at = count if at is None else at
    if any(argument.name == ARGUMENT for argument in exported.arguments):
        raise BadOption(f"adapters: the model has an argument {ARGUMENT!r} of its own")
    if not count or not graph.inputs[0].tensor_type.rank:
        raise BadOption("adapters: expected rows in the first size of the model's first input")
    batch = graph.inputs[0].shape[0]
    node = Builder(graph.dims).input(SLOTS, TensorType.dense((batch,), torch.int64))
    return replace(
        exported,
        graph=replace(
            graph,
            inputs=(*graph.inputs[:at], node, *graph.inputs[at:]),
            updates=tuple((i + (i >= at), value) for i, value in graph.updates),
        ),
        arguments=(*exported.arguments, Argument(ARGUMENT, True, Leaf(leaf))),
        leaves=(*exported.leaves[:at], leaf, *exported.leaves[at:]),
    )


def no_adapters(rows: int) -> Mapping[str, Any]:
    """The keyword argument of a call whose rows have no adapter."""
    return {ARGUMENT: torch.full((rows,), -1)}


def room_of(
    exported: Exported, graph: Graph, asked: Adapters, report: Report, prefix: str = ""
) -> Room:
    """What the finished graph has room for, layers by their names in the model.

    prefix: of names, which the caller's module has put before the model's.
    Raises BadOption with the reasons where there is none.
    """
    layers = {}
    for const, parameter in exported.names.items():
        a, b, ranks = bank_names(const)
        if a in graph.consts:
            sizes = graph.consts[a].shape[2], graph.consts[b].shape[2]
            name = parameter.removeprefix(prefix).removesuffix(".weight")
            layers[name] = Layer(*sizes, a, b, ranks)
    if not layers:
        sites = report.find(AttachAdapters.name).sites
        told = "; ".join(f"{site.where}: {site.reason}" for site in sites[:4])
        raise BadOption(
            f"adapters: no layer of {asked.layers!r} has room; {told or 'none is linear'}"
        )
    own = exported.arguments[-1].tree.index  # see with_slots
    return Room(asked.rank, asked.slots, layers, own, exported.leaves[0])
