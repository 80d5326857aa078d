"""fold-constants: rewrites, declines, accuracy, idempotence, gain."""

from dataclasses import replace

import torch

from infopt.compiler.cost import graph_seconds
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.target import Target
from infopt.compiler.testing import graph_of, run_pass
from infopt.compiler.types import TensorType
from infopt.passes.fold_constants import FoldConstants
from tests.compiler.tracing.traced import names

X = torch.randn(3, 4)


def program(size: int = 4) -> Graph:
    """x + sin(c) * arange(size), where c is a constant."""
    o = Builder()
    x = o.input("x", TensorType.dense((3, size), torch.float32))
    c = o.const("c", TensorType.dense((size,), torch.float32))
    steps = o.to(o.arange(size), torch.float32)
    return Graph((x,), (o.add(x, o.mul(o.sin(c), steps)),), {"c": torch.randn(size)})


def test_rewrites() -> None:
    graph = program()
    result, report = run_pass(FoldConstants(), graph, [(X,)])
    assert names(result) == ["aten.add.Tensor"]
    assert len(result.consts) == 1 and "c" not in result.consts
    assert len(report.applied) == 4


def test_declines_what_would_hold_more_memory() -> None:
    graph = program()
    result, report = run_pass(FoldConstants(limit=8), graph, [(X,)])
    assert "its 32 bytes are more than its inputs' 0 and the limit 8" in report.declined[0].reason
    assert "aten.arange.default" in names(result) and "aten.sin.default" not in names(result)


def test_declines_results() -> None:
    graph = graph_of(lambda o: (o.full([3], 2.0), o.relu(o.full([3], 2.0))), [])
    result, report = run_pass(FoldConstants(), graph)
    assert names(result) == names(graph)
    assert "callers may write to it" in report.declined[0].reason


def test_declines_random_and_inputs() -> None:
    graph = graph_of(lambda o, x: o.add(o.relu(x), o.relu(o.rand([4]))), [X])
    result, report = run_pass(FoldConstants(), graph)
    assert names(result) == names(graph) and not report.applied


def test_views_of_constants_are_not_copied() -> None:
    o = Builder()
    x = o.input("x", TensorType.dense((3, 4), torch.float32))
    c = o.const("c", TensorType.dense((1, 4), torch.float32))
    consts = {"c": torch.randn(1, 4)}
    graph = Graph((x,), (o.add(x, o.expand(c, [3, 4])),), consts)
    result, _ = run_pass(FoldConstants(), graph)
    assert result is graph
    through = Graph((x,), (o.add(x, o.sin(o.expand(c, [3, 4]))),), consts)
    folded, _ = run_pass(FoldConstants(), through, [(X,)])
    assert names(folded) == ["aten.add.Tensor"]


def test_accuracy() -> None:
    graph = program()
    result, _ = run_pass(FoldConstants(), graph, [(X,)])
    assert torch.equal(interpret(graph, [X])[0], interpret(result, [X])[0])


def test_idempotent() -> None:
    once, _ = run_pass(FoldConstants(), program())
    again, _ = run_pass(FoldConstants(), once)
    assert again.key == once.key


def test_gain() -> None:
    graph = program(1000)
    result, _ = run_pass(FoldConstants(), graph)
    target = Target.parse("cpu:scalar")
    assert graph_seconds(result, target) < graph_seconds(graph, target)


def test_a_name_that_is_taken_is_not_taken_again() -> None:
    plain = program()
    (name,) = run_pass(FoldConstants(), plain)[0].consts
    o = Builder()
    x, kept = plain.inputs[0], o.const(name, TensorType.dense((4,), torch.float32))
    graph = replace(
        plain,
        outputs=(o.add(plain.outputs[0], o.mul(x, kept)),),
        consts={**plain.consts, name: torch.randn(4)},
    )
    result, _ = run_pass(FoldConstants(), graph, [(X,)])
    assert set(result.consts) == {name, name + "_"}
    assert result.consts[name] is graph.consts[name]
    torch.testing.assert_close(interpret(result, [X]), interpret(graph, [X]))
