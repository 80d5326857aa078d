"""Kernels alone: right ones pass, a wrong one is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infopt
from infopt.codegen.build import find_compiler
from infopt.codegen.kernel import Call, kernel_op
from infopt.compiler.interpret import interpret
from infopt.compiler.kernel_check import _alone, wrong_kernels
from infopt.compiler.target import Target
from infopt.compiler.testing import graph_of

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")


@kernel_op
def doubled_for_a_test(x):
    """2 x"""
    return x * 2


TEXT = """
#include "vec.h"
using namespace infopt;

INFOPT_EXPORT void tripled_for_a_test(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t n = call->numbers[0];
  for (int64_t i = 0; i < n; ++i)
    pointer<float>(call, 1)[i] = pointer<const float>(call, 0)[i] * (i == 3 ? 3 : 2);
}
"""


@doubled_for_a_test.kernel("cpu")
def wrong_in_one_place(cfg, target, x):
    return Call("tripled_for_a_test", ("x", "out"), (x.numel,), tasks=1, source=TEXT)


def test_the_wrong_kernel_is_named() -> None:
    x = torch.randn(3, 5)
    graph = graph_of(lambda o, v: o.softmax(o.doubled_for_a_test(v), -1), [x])
    (found,) = wrong_kernels(graph, [x], Target.detect())
    assert "%1 doubled_for_a_test f32[3, 5]" in str(found)
    assert "times what rounding explains" in found.error


def test_the_kernels_of_a_model_are_right() -> None:
    rows = torch.export.Dim("rows", min=1, max=64)
    net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 8)).eval()
    x = torch.randn(7, 16)
    compiled = infopt.compile(net, (x,), dynamic_shapes={"input": {0: rows}})
    sample = compiled._exported.sample((x,), {})
    assert wrong_kernels(compiled.graph, sample, Target.detect()) == []


def test_a_node_alone_has_the_results_that_there_are() -> None:
    x, one, w = torch.randn(2, 3), torch.ones(2, 1), torch.ones(3)
    name = "aten.native_layer_norm_backward.default"

    def build(o, x, one, w):
        made = o.call(name, o.neg(x), x, [3], one, one, w, w, [True, False, True])
        return o.getitem(made, 2)

    graph = graph_of(build, [x, one, w])
    node = next(n for n in graph.nodes() if n.op.name == name)
    alone, sources = _alone(graph, node)
    assert [n.attr("index") for n in alone.outputs] == [0, 2]
    assert sources == [node.args[0], *graph.inputs] and len(alone.inputs) == 4
    found = interpret(alone, [-x, x, one, w])
    torch.testing.assert_close(found[1], interpret(graph, [x, one, w])[0])


def test_operations_alike_are_tried_once() -> None:
    """A wrong kernel is told once, for the first of its nodes."""
    x = torch.randn(3, 5)
    twice = graph_of(lambda o, v: o.doubled_for_a_test(o.doubled_for_a_test(v)), [x])
    (found,) = wrong_kernels(twice, [x], Target.detect())
    assert found.node.startswith("%1 ")
