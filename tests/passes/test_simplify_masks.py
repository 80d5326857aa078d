"""simplify-masks: rewrites, declines, accuracy, idempotence, gain."""

import pytest
import sympy
import torch

from infopt.compiler.cost import graph_seconds
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.compiler.types import Dim, TensorType
from infopt.passes.simplify_masks import SimplifyMasks, causal_part
from tests.compiler.traced import names

M = torch.rand(3, 5) > 0.4


def rows_and_columns(o, b, s):
    return o.reshape(o.arange(b), [b, 1, 1, 1]), o.reshape(o.arange(s), [1, 1, 1, s])


def read_all(o, m):
    return o.bitwise_not(o.call("aten.index.Tensor", m, list(rows_and_columns(o, *m.shape))))


def true_everywhere(o, m):
    positions = o.reshape(o.arange(5), [1, 1, 5, 1])
    known = o.bitwise_and(o.ones([], dtype=torch.bool), o.ge(positions, 0))
    return o.bitwise_not(o.bitwise_and(known, o.reshape(m, [3, 1, 1, 5])))


CASES = {
    "indexed by every row and column": (
        read_all,
        lambda o, m: o.bitwise_not(o.reshape(m, [3, 1, 1, 5])),
    ),
    "columns before rows": (
        lambda o, m: o.bitwise_not(
            o.call("aten.index.Tensor", m, [o.arange(3), o.reshape(o.arange(5), [5, 1])])
        ),
        lambda o, m: o.bitwise_not(o.reshape(o.permute(m, [1, 0]), [5, 3])),
    ),
    "and with what is true": (
        true_everywhere,
        lambda o, m: o.bitwise_not(o.expand(o.reshape(m, [3, 1, 1, 5]), [3, 1, 5, 5])),
    ),
    "and with ones": (
        lambda o, m: o.bitwise_not(o.bitwise_and(m, o.ones([5], dtype=torch.bool))),
        lambda o, m: o.bitwise_not(m),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rewrites(case: str) -> None:
    assert check_pass(SimplifyMasks(), *CASES[case], [M]).applied


DECLINED = {
    "another start": lambda o, m: o.call(
        "aten.index.Tensor", m, [o.arange(1, 3), o.reshape(o.arange(5), [5, 1])]
    ),
    "fewer rows": lambda o, m: o.call(
        "aten.index.Tensor", m, [o.arange(2), o.reshape(o.arange(5), [5, 1])]
    ),
    "the diagonal": lambda o, m: o.call(
        "aten.index.Tensor", o.slice(m, 1, 0, 3), [o.arange(3), o.arange(3)]
    ),
    "not all true": lambda o, m: o.bitwise_not(o.bitwise_and(o.ge(o.arange(5), 1), m)),
    "a result": lambda o, m: o.bitwise_and(m, o.ones([5], dtype=torch.bool)),
}


@pytest.mark.parametrize("case", DECLINED)
def test_declines(case: str) -> None:
    graph = graph_of(DECLINED[case], [M], SimplifyMasks())
    assert run_pass(SimplifyMasks(), graph)[0] is graph


def test_dynamic_sizes() -> None:
    s, b = (sympy.Symbol(n, integer=True, positive=True) for n in ("s0", "b0"))
    o = Builder((Dim(b, 2, None, 3), Dim(s, 2, None, 5)))
    m = o.input("m", TensorType.dense((b, s), torch.bool))
    graph = Graph((m,), (read_all(o, m),), dims=o.dims)
    result, _ = run_pass(SimplifyMasks(), graph, [(M,)])
    assert names(result) == ["aten.reshape.default", "aten.bitwise_not.default"]


def test_causal() -> None:
    def build(o, m):
        key, query = o.reshape(o.arange(5), [1, 5]), o.reshape(o.arange(5), [5, 1])
        return o.le(key, query), o.ge(query, key), o.le(query, key), o.lt(key, query)

    graph = graph_of(build, [M])
    found = interpret(graph, [M])
    lower = torch.ones(5, 5, dtype=torch.bool).tril()
    for node, value in zip(graph.outputs, found, strict=True):
        assert causal_part(node, graph) == torch.equal(value, lower)


def test_accuracy_is_bitwise() -> None:
    for build, _ in CASES.values():
        graph = graph_of(build, [M], SimplifyMasks())
        result, _ = run_pass(SimplifyMasks(), graph, [(M,)])
        assert torch.equal(interpret(graph, [M])[0], interpret(result, [M])[0])


def test_idempotent() -> None:
    for build, _ in CASES.values():
        once, _ = run_pass(SimplifyMasks(), graph_of(build, [M], SimplifyMasks()))
        assert run_pass(SimplifyMasks(), once)[0] is once


def test_gain() -> None:
    graph = graph_of(true_everywhere, [M], SimplifyMasks())
    result, _ = run_pass(SimplifyMasks(), graph)
    target = Target.detect()
    assert graph_seconds(result, target) < graph_seconds(graph, target)


def test_constant_causal_masks() -> None:
    lower = torch.ones(4, 4, dtype=torch.bool).tril()
    wrong = lower.clone()
    wrong[1, 3] = True
    for value, causal in (
        (lower, True),
        (lower.reshape(1, 1, 4, 4), True),
        (torch.ones(3, 5, dtype=torch.bool).tril(), True),
        (wrong, False),
        (lower.t().contiguous(), False),
        (lower.expand(2, 4, 4).contiguous(), False),  # one for each of two batches
        (lower.float(), False),
        (lower[0], False),
    ):
        o = Builder()
        node = o.const("mask", TensorType.of(value))
        assert causal_part(node, Graph((), (node,), {"mask": value})) is causal, value
