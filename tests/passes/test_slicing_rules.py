"""Ops whose parts come from parts: which operands are cut, and that the parts give the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import infopt.passes.pipelines  # noqa: F401  its kernels declare the ops
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.types import TensorType
from infopt.passes.slicing_rules import Axis, cut_operands, part_attrs

ROWS, BATCH = Axis("rows", 4), Axis("batch", 4)
ACT, OUT = {"activation": "gelu"}, {"out": torch.float32}
EPS, SIDE = {"eps": 1e-5}, [[1, 1], [0, 0], [1, 1]]
HEADS = [(4, 2, 5, 8)] * 3
CHAIN = [(4, 8), (2, 8), (6, 2), (3, 6), (5, 3), (2,), (6,), (3,), (5,), (4, 5)]
GROUPS = [(4, 9), (4, 3, 2, 1), "ids", (8,), (4, 8)]
FOUR = {"functions": ("none", "relu", "none", "none")}
THIN, UPS = [(4, 5, 3)] * 3, [(16, 3)] * 3
SHARED = {"heads": 2, "kv_heads": 2, "scale": 0.3}
IMAGE, KERNEL = (4, 3, 6, 6), (5, 3, 2, 2)
Case = tuple[str, list, list, dict[str, Any], set[int], set[int]]
# op, shapes ("ids": whole numbers; None: left out), numbers behind them, attributes, then the
# operands with the axis: of rows, of a batch; none where the op mixes the parts
CASES: list[Case] = [
    ("aten.linear.default", [(4, 8), (6, 8), (6,)], [], {}, {0}, {0}),
    ("linear_act", [(4, 8), (6, 8), (6,), (4, 6)], [], ACT, {0, 3}, {0, 3}),
    ("gated_linear", [(4, 8), (6, 8), (6, 8), (6,), (6,)], [], {}, {0}, {0}),
    ("narrow_linear", [(4, 8), (6, 8), (6,), (4, 6)], [], ACT | OUT, {0, 3}, {0, 3}),
    ("narrow_gated_linear", [(4, 8), (6, 8), (6, 8)], [], OUT, {0}, {0}),
    ("linear_chain", CHAIN, [], FOUR, {0, 9}, {0, 9}),
    ("narrow_linear_chain", CHAIN, [], FOUR | OUT, {0, 9}, {0, 9}),
    ("group_sparse_linear", GROUPS, [], {"features": 8}, {0, 4}, {0, 4}),
    ("rms_norm", [(4, 8), (8,)], [], EPS, {0}, {0}),
    ("attention", HEADS, [], {"scale": 0.3}, set(), {0, 1, 2}),
    ("attention", [*HEADS, (4, 1, 5, 5)], [], {"scale": 0.3}, set(), {0, 1, 2, 3}),
    ("attention", [*HEADS, (1, 1, 5, 5)], [], {"scale": 0.3}, set(), {0, 1, 2}),
    ("low_rank_attention", [*THIN, *UPS], [], SHARED, set(), {0, 1, 2}),
    (
        "low_rank_attention",
        [*THIN, *UPS, *[(16,)] * 3, (4, 1, 5, 5)],
        [],
        SHARED,
        set(),
        {0, 1, 2, 9},
    ),
    ("aten.scaled_dot_product_attention.default", HEADS, [], {}, set(), set()),  # draws numbers
    ("aten.embedding.default", [(9, 8), "ids"], [], {}, set(), {1}),
    ("aten.conv1d.default", [(4, 3, 9), (5, 3, 2), (5,)], [], {}, set(), {0}),
    ("aten.conv2d.default", [IMAGE, KERNEL, (5,)], [], {}, set(), {0}),
    ("aten.group_norm.default", [(4, 6, 5)], [3], {}, set(), {0}),
    ("aten.max_pool2d.default", [IMAGE], [[2, 2]], {}, set(), {0}),
    ("aten.upsample_nearest2d.vec", [IMAGE], [None, [2.0, 2.0]], {}, set(), {0}),
    ("aten.avg_pool2d.default", [IMAGE], [[2, 2]], {}, set(), {0}),
    ("aten.to.dtype", [(4, 8)], [torch.float64], {}, {0}, {0}),
    ("aten.clone.default", [(4, 8)], [], {}, {0}, {0}),
    ("aten.softmax.int", [(4, 8)], [-1], {}, {0}, {0}),
    ("aten.softmax.int", [(4, 8)], [0], {}, set(), set()),
    ("aten.log_softmax.int", [(4, 8)], [1], {}, {0}, {0}),
    ("aten.transpose.int", [(4, 5, 8)], [1, 2], {}, set(), {0}),
    ("aten.transpose.int", [(4, 5, 8)], [0, 1], {}, set(), set()),
    ("aten.slice.Tensor", [(4, 8)], [1, 0, 3], {}, set(), {0}),
    ("aten.slice.Tensor", [(8, 8)], [0, 0, 4], {}, set(), set()),
    ("aten.select.int", [(4, 5, 8)], [1, 2], {}, set(), {0}),
    ("aten.unsqueeze.default", [(4, 8)], [1], {}, set(), {0}),
    ("aten.sum.dim_IntList", [(4, 5, 8)], [[1]], {}, set(), {0}),
    ("aten.sum.dim_IntList", [(4, 5, 8)], [[0, 2]], {}, set(), set()),
    ("aten.mean.dim", [(4, 5, 8)], [[-1]], {}, set(), {0}),
    ("aten.amax.default", [(4, 5, 8)], [[1], True], {}, set(), {0}),
    ("aten.amin.default", [(4, 5, 8)], [[2]], {}, set(), {0}),
    ("aten.mul.Tensor", [(4, 8), (8,)], [], {}, {0}, {0}),
    ("aten.add.Tensor", [(4, 8), (4, 1)], [], {}, {0, 1}, {0, 1}),
    ("aten.add.Tensor", [(4, 8), (1, 8)], [], {}, set(), {0}),
    ("aten.cumsum.default", [(4, 8)], [0], {}, set(), set()),
]


def made(case: Case, parts: list[torch.Tensor]) -> Graph:
    op, _, numbers, attrs, *_ = case
    o = Builder()
    nodes = [o.input(f"x{i}", TensorType.of(t)) for i, t in enumerate(parts)]
    return Graph(tuple(nodes), (o.call(op, *nodes, *numbers, **attrs),))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]} {case[2]}")
def test_what_is_cut_gives_the_parts(case: Case) -> None:
    torch.manual_seed(0)
    given = [torch.randint(9, (4, 3)) if s == "ids" else torch.randn(*s) for s in case[1]]
    graph = made(case, given)
    [node] = graph.outputs
    [whole] = interpret(graph, given)
    for axis, expected in ((ROWS, case[4]), (BATCH, case[5])):
        found = cut_operands(node, axis)
        assert (found or set()) == {graph.inputs[i] for i in expected}, axis
        if not expected:
            continue
        halves = []
        for start in (0, 2):
            parts = [t[start : start + 2] if i in expected else t for i, t in enumerate(given)]
            halves += interpret(made(case, parts), parts)
        torch.testing.assert_close(torch.cat(halves), whole)


def test_several_results_are_not_cut() -> None:
    o = Builder()
    x = o.input("x", TensorType.dense((4, 8), torch.float32))
    node = o.call("add_rms_norm", x, x, eps=1e-5)
    assert cut_operands(node, ROWS) is None and cut_operands(node, BATCH) is None


def one(name: str, shape: tuple[int, ...], *args: Any) -> Any:
    o = Builder()
    return o.call(name, o.input("x", TensorType.dense(shape, torch.float32)), *args)


def test_values_without_a_first_size_have_no_axis() -> None:
    for axis in (ROWS, BATCH):
        assert cut_operands(one("aten.sum.default", (4, 8)), axis) is None


def test_sizes_of_parts() -> None:
    """What attributes say of the whole follows the parts."""
    reshaped = one("aten.reshape.default", (8, 6), [8, 2, 3])
    assert dict(part_attrs(reshaped, BATCH, 1))["shape"] == (2, 2, 3)
    expanded = one("aten.expand.default", (4, 1, 8), [4, 5, 8])
    assert dict(part_attrs(expanded, BATCH, 3))["size"] == (3, 5, 8)
    rows = one("aten.reshape.default", (2, 2, 8), [4, 8])
    assert dict(part_attrs(rows, ROWS, 3))["shape"] == (3, 8)


def test_rows_are_matrices_when_cut() -> None:
    """So the last dimension, whatever it was, is 1; of a batch it stays."""
    summed = one("aten.softmax.int", (2, 2, 8), -1)
    assert dict(part_attrs(summed, ROWS, 3))["dim"] == 1
    assert dict(part_attrs(one("aten.softmax.int", (4, 5, 8), -1), BATCH, 3))["dim"] == -1
