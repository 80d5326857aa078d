"""What follows a product: which activation, which residual, and who else reads the value."""

from __future__ import annotations

import pytest
import torch

from infopt.compiler.testing import graph_of
from infopt.passes.epilogue import activated, only_reader, summed, why_not

X = torch.randn(3, 5)


def value_of(build, *others):
    """The graph, and the product in it whose readers are asked about."""
    graph = graph_of(lambda o, x, *more: build(o, o.exp(x), *more), [X, *others])
    return graph, next(n for n in graph.nodes() if n.op.name == "aten.exp.default")


ACTIVATIONS = {
    "relu": lambda o, y: o.relu(y),
    "silu": lambda o, y: o.silu(y),
    "sigmoid": lambda o, y: o.sigmoid(y),
    "tanh": lambda o, y: o.tanh(y),
    "hardswish": lambda o, y: o.call("aten.hardswish.default", y),
    "relu6": lambda o, y: o.call("aten.relu6.default", y),
    "relu6 as a hardtanh": lambda o, y: o.call("aten.hardtanh.default", y, 0.0, 6.0),
    "gelu": lambda o, y: o.call("aten.gelu.default", y),
    "gelu_tanh": lambda o, y: o.call("aten.gelu.default", y, approximate="tanh"),
    "quick_gelu": lambda o, y: o.mul(y, o.sigmoid(o.mul(y, 1.702))),
    "quick_gelu, gate first": lambda o, y: o.mul(o.sigmoid(o.mul(y, 1.702)), y),
}


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_activations(case: str) -> None:
    graph, node = value_of(ACTIVATIONS[case])
    reader, name = activated(graph, node)
    assert reader is graph.outputs[0] and name == case.partition(",")[0].partition(" ")[0]


def shared_gate(o, y):
    gate = o.sigmoid(o.mul(y, 1.702))
    return o.mul(y, gate), gate


def shared_scale(o, y):
    scaled = o.mul(y, 1.702)
    return o.mul(y, o.sigmoid(scaled)), scaled


NOT_ACTIVATIONS = {
    "a result itself": lambda o, y: (o.relu(y), y),
    "read twice": lambda o, y: (o.relu(y), o.cos(y)),
    "another function": lambda o, y: o.cos(y),
    "a hardtanh to 5": lambda o, y: o.call("aten.hardtanh.default", y, 0.0, 5.0),
    "a hardtanh from -1": lambda o, y: o.call("aten.hardtanh.default", y, -1.0, 6.0),
    "another factor": lambda o, y: o.mul(y, o.sigmoid(o.mul(y, 1.5))),
    "a sum of the gate": lambda o, y: o.add(y, o.sigmoid(o.mul(y, 1.702))),
    "tanh as the gate": lambda o, y: o.mul(y, o.tanh(o.mul(y, 1.702))),
    "a third reader": lambda o, y: (o.mul(y, o.sigmoid(o.mul(y, 1.702))), o.cos(y)),
    "its gate is a result": shared_gate,
    "its scale is a result": shared_scale,
    "quick gelu that is a result": lambda o, y: (o.mul(y, o.sigmoid(o.mul(y, 1.702))), y),
    "the gate of something else": lambda o, y: (o.sigmoid(o.mul(y, 1.702)), o.mul(y, y)),
}


@pytest.mark.parametrize("case", NOT_ACTIVATIONS)
def test_what_is_no_activation(case: str) -> None:
    graph, node = value_of(NOT_ACTIVATIONS[case])
    assert activated(graph, node) == (node, "none")


@pytest.mark.parametrize("first", [True, False])
def test_residuals(first: bool) -> None:
    graph, node = value_of(lambda o, y, r: o.add(y, r) if first else o.add(r, y), X)
    assert summed(graph, node) == (graph.outputs[0], graph.inputs[1])


NOT_RESIDUALS = {
    "scaled": (lambda o, y, r: o.call("aten.add.Tensor", y, r, alpha=2), X),
    "a row for all": (lambda o, y, r: o.add(y, r), X[0]),
    "larger": (lambda o, y, r: o.add(y, r), torch.randn(2, 3, 5)),
    "another dtype": (lambda o, y, r: o.add(y, r), X.double()),
    "itself": (lambda o, y, r: (o.add(y, y), r), X),
    "read twice": (lambda o, y, r: (o.add(y, r), o.cos(y)), X),
    "a product": (lambda o, y, r: o.mul(y, r), X),
}


@pytest.mark.parametrize("case", NOT_RESIDUALS)
def test_what_is_no_residual(case: str) -> None:
    build, other = NOT_RESIDUALS[case]
    graph, node = value_of(build, other)
    assert summed(graph, node) == (node, None)


def test_the_only_reader_and_why_there_is_none() -> None:
    graph, node = value_of(lambda o, y: o.cos(y))
    assert only_reader(graph, node) is graph.outputs[0]
    assert why_not(graph, node) == "is read by aten.cos.default"
    graph, node = value_of(lambda o, y: (o.cos(y), o.sin(y)))
    assert only_reader(graph, node) is None
    assert why_not(graph, node) == "is read by aten.cos.default, aten.sin.default twice"
    graph, node = value_of(lambda o, y: (o.cos(y), y))
    assert only_reader(graph, node) is None and why_not(graph, node) == "is a result"
