"""merge-linears: rewrites, declines, accuracy, idempotence, gain."""

from dataclasses import replace

import pytest
import torch

from infopt.compiler.cost import graph_seconds
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.target import Target
from infopt.compiler.testing import graph_of, run_pass
from infopt.compiler.types import TensorType
from infopt.passes.merge_linears import MergeLinears
from tests.compiler.tracing.traced import names

X = torch.randn(3, 5, 16)


def program(sizes=(8, 8, 4), bias: bool = True) -> Graph:
    o = Builder()
    x = o.input("x", TensorType.dense(X.shape, torch.float32))
    outputs, consts = [], {}
    for i, n in enumerate(sizes):
        consts[f"w{i}"] = torch.randn(n, 16)
        args = [o.const(f"w{i}", TensorType.dense((n, 16), torch.float32))]
        if bias:
            consts[f"b{i}"] = torch.randn(n)
            args.append(o.const(f"b{i}", TensorType.dense((n,), torch.float32)))
        outputs.append(o.sin(o.linear(x, *args)))
    return Graph((x,), tuple(outputs), consts, stage=Stage.FUSE)


@pytest.mark.parametrize("bias", [True, False])
def test_rewrites(bias: bool) -> None:
    graph = program(bias=bias)
    result, report = run_pass(MergeLinears(), graph, [(X,)])
    assert names(result).count("aten.linear.default") == 1
    assert names(result).count("aten.slice.Tensor") == 3 and len(report.applied) == 3
    shapes = [tuple(t.shape) for t in result.consts.values()]
    assert shapes == ([(20, 16), (20,)] if bias else [(20, 16)])


def test_memory_does_not_grow() -> None:
    graph = program()
    result, _ = run_pass(MergeLinears(), graph)
    assert sum(t.numel() for t in result.consts.values()) == sum(
        t.numel() for t in graph.consts.values()
    )


def test_declines_weights_that_are_inputs() -> None:
    weights = [torch.randn(8, 16), torch.randn(4, 16)]
    graph = graph_of(
        lambda o, x, a, b: (o.linear(x, a), o.linear(x, b)), [X, *weights], MergeLinears()
    )
    result, report = run_pass(MergeLinears(), graph)
    assert result is graph
    assert report.declined[0].reason == "weights are inputs, not constants"


def test_declines_weights_that_are_read_elsewhere() -> None:
    graph = program()
    o = Builder()
    weight = next(n for n in graph.nodes() if n.op.name == "const")
    graph = replace(graph, outputs=(*graph.outputs, o.relu(weight)), results=())
    result, report = run_pass(MergeLinears(), graph)
    assert result is graph and "is read elsewhere too" in report.declined[0].reason


def test_one_linear_is_left_alone() -> None:
    graph = program((8,))
    result, report = run_pass(MergeLinears(), graph)
    assert result is graph and not report.sites


def test_accuracy() -> None:
    run_pass(MergeLinears(), program((64, 32, 32)), [(X,), (X * 100,)])


def test_idempotent() -> None:
    once, _ = run_pass(MergeLinears(), program())
    assert run_pass(MergeLinears(), once)[0] is once


def test_gain() -> None:
    graph = program()
    result, _ = run_pass(MergeLinears(), graph)
    target = Target.parse("cpu:avx512")
    assert graph_seconds(result, target) < graph_seconds(graph, target)
