"""simplify-masks: rewrites, declines, accuracy, idempotence, gain."""

from dataclasses import replace

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
from infopt.passes.simplify_masks import SimplifyMasks, counted
from tests.compiler.tracing.traced import names

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


def only(o, m, known):
    return o.bitwise_not(o.bitwise_and(m, known))


KNOWN = {
    "full of True": (lambda o, m: o.call("aten.full.default", [5], True), True),
    "full of False": (lambda o, m: o.call("aten.full.default", [5], False), False),
    "both true": (
        lambda o, m: o.bitwise_and(o.call("aten.full.default", [5], True), o.ge(o.arange(5), -1)),
        True,
    ),
    "one of them true": (
        lambda o, m: o.bitwise_and(o.call("aten.full.default", [3, 5], True), m),
        True,  # what is left is the mask itself
    ),
    "places from 0 on": (lambda o, m: o.ge(o.arange(5), 0), True),
    "places from 1 on": (lambda o, m: o.ge(o.arange(5), 1), False),
    "places that do not start at 0": (
        lambda o, m: o.ge(o.call("aten.arange.start", 1, 6), 0),
        False,
    ),
    "every second place": (
        lambda o, m: o.ge(o.call("aten.arange.start_step", 0, 10, 2), 0),
        False,
    ),
    "zeros": (lambda o, m: o.zeros([5], dtype=torch.bool), False),
}


@pytest.mark.parametrize("case", KNOWN)
def test_what_is_known_to_be_true(case: str) -> None:
    build, applies = KNOWN[case]
    graph = graph_of(lambda o, m: only(o, m, build(o, m)), [M], SimplifyMasks())
    result, report = run_pass(SimplifyMasks(), graph, [(M,)])
    assert bool(report.applied) is applies and (result is not graph) is applies


def constants(value):
    """The mask `and` a constant of the graph."""
    graph = graph_of(lambda o, m, c: only(o, m, c), [M, value], SimplifyMasks())
    o = Builder(graph.dims)
    made = o.const("kept", TensorType.of(value))
    swapped = graph.map(
        lambda node, args: (
            made if node is graph.inputs[1] else (o.rebuild(node, args) if node.args else node)
        )
    )
    return replace(swapped, inputs=graph.inputs[:1], consts={"kept": value})


@pytest.mark.parametrize("value", [True, False])
def test_constants_are_looked_at(value: bool) -> None:
    held = torch.ones(3, 5, dtype=torch.bool)
    held[2, 4] = value
    result, report = run_pass(SimplifyMasks(), constants(held), [(M,)])
    assert len(report.applied) == int(value)
    assert torch.equal(interpret(result, [M])[0], ~(M & held))


def test_a_part_that_may_be_false_stays():
    def unknown(o, m):
        return o.bitwise_not(o.bitwise_and(m, o.bitwise_and(o.ones([5], dtype=torch.bool), m)))

    result, _ = run_pass(SimplifyMasks(), graph_of(unknown, [M]))
    assert "aten.bitwise_and.Tensor" in names(result)
    assert torch.equal(interpret(result, [M])[0], ~M)


def test_both_parts_true_are_true():
    def both(o, m):
        ones = o.ones([5], dtype=torch.bool)
        return o.bitwise_and(m, o.bitwise_and(ones, ones))

    result, _ = run_pass(SimplifyMasks(), graph_of(lambda o, m: o.bitwise_not(both(o, m)), [M]))
    assert names(result) == ["aten.bitwise_not.default"]


@pytest.mark.parametrize(
    ("tensor", "where", "found"),
    [
        (torch.arange(5), [5], (0, 5)),
        (torch.arange(5, dtype=torch.int32), [1, 5, 1], (1, 5)),
        (torch.arange(1), [1, 1], (None, 1)),
        (torch.arange(1, 6), [5], None),
        (torch.arange(5.0), [5], None),
        (torch.arange(6).reshape(2, 3), [2, 3], None),
        (torch.arange(6).reshape(2, 3), [6], None),
    ],
)
def test_constants_that_count(tensor, where, found) -> None:
    o = Builder()
    const = o.const("c", TensorType.of(tensor))
    node = const if list(tensor.shape) == where else o.reshape(const, where)
    assert counted(node, Graph((), (node,), {"c": tensor})) == found
