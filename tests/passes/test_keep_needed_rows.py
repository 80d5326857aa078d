"""keep-needed-rows: rewrites, declines, accuracy, idempotence, gain."""

import torch

from infopt.codegen.kernels.linear import linear_act
from infopt.compiler.cost import graph_seconds
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.passes.keep_needed_rows import KeepNeededRows
from tests.compiler.tracing.traced import names

_SEEDED = torch.Generator().manual_seed(0)
X = torch.randn(2, 64, 256, generator=_SEEDED)
W = torch.randn(256, 256, generator=_SEEDED) / 16  # keeps results near 1
B = torch.randn(256, generator=_SEEDED)
INPUTS = [X, W, B]


def block(o, x, w, b):
    """A row-wise block with a residual: every row of the result is a function of one row of x."""
    return o.layer_norm(o.add(x, o.gelu(o.linear(x, w, b))), [256], b, b)


def test_rewrites_a_selected_row() -> None:
    def after(o, x, w, b):
        return o.call("aten.select.int", block(o, o.slice(x, 1, 0, 1), w, b), 1, 0)

    report = check_pass(
        KeepNeededRows(), lambda o, *a: o.call("aten.select.int", block(o, *a), 1, 0), after, INPUTS
    )
    assert report.applied and "needs rows 0:1 of dim 1" in report.applied[0].where


def test_rewrites_the_last_rows() -> None:
    end = 2**63 - 1
    check_pass(
        KeepNeededRows(),
        lambda o, *a: o.slice(block(o, *a), 1, -2, end),
        lambda o, x, w, b: block(o, o.slice(x, 1, -2, end), w, b),
        INPUTS,
    )


PICKS = torch.tensor([[3, 63, 3], [0, 9, 8]])


def picked(o, value, picks):
    """The rows picks [2, 3] of value [2, 64, K]."""
    index = o.expand(o.reshape(picks, [2, 3, 1]), [2, 3, value.shape[2]])
    return o.call("aten.gather.default", value, 1, index)


def test_rewrites_rows_that_are_data() -> None:
    def mlp(o, x, w, b):
        y = o.call(linear_act, o.layer_norm(x, [256], b, b), w, None, x, activation="gelu")
        return o.linear(y, w, b)

    report = check_pass(
        KeepNeededRows(),
        lambda o, *a: picked(o, mlp(o, *a[:3]), a[3]),
        lambda o, x, w, b, picks: mlp(o, picked(o, x, picks), w, b),
        [*INPUTS, PICKS],
    )
    assert "needs rows by i64[2, 3, 1] of dim 1" in report.applied[0].where


def test_declines_rows_that_are_not_one_for_all_features() -> None:
    def computed(o, x, w, b, picks):
        return picked(o, o.linear(x, w), o.add(picks, 0))

    def each(o, x, w, b, picks):
        index = o.reshape(picks, [2, 3, 1])
        return o.call("aten.gather.default", o.linear(x, w), 1, index)

    def broadcast(o, x, w, b, picks):
        return picked(o, o.add(x, o.slice(x, 0, 0, 1)), picks)

    for build in (computed, each, broadcast):
        graph = graph_of(build, [*INPUTS, PICKS], KeepNeededRows())
        result, report = run_pass(KeepNeededRows(), graph)
        assert result is graph and not report.sites, build


def test_rows_of_a_matrix_are_not_those_of_its_weights() -> None:
    x, w = torch.randn(640, 256), torch.randn(256, 256)

    def rows(o, value):
        return o.slice(value, 0, -2, 2**63 - 1)

    for product in (
        lambda o, x, w, r: o.linear(x, w),
        lambda o, x, w, r: o.call("linear_act", x, w, None, r, activation="gelu"),
        lambda o, x, w, r: o.call("gated_linear", x, w, w),
    ):
        check_pass(
            KeepNeededRows(),
            lambda o, x, w, r, product=product: rows(o, product(o, x, w, r)),
            lambda o, x, w, r, product=product: product(o, rows(o, x), w, rows(o, r)),
            [x, w, torch.randn(640, 256)],
        )


def test_rewrites_through_heads_and_attention() -> None:
    def before(o, x, w, b):
        def heads(value):
            return o.permute(o.reshape(value, [2, 64, 4, 64]), [0, 2, 1, 3])

        q, k = heads(o.linear(x, w, b)), heads(x)
        y = o.permute(o.call("aten.scaled_dot_product_attention.default", q, k, k), [0, 2, 1, 3])
        return o.call("aten.select.int", o.linear(o.reshape(y, [2, 64, 256]), w), 1, 5)

    graph = graph_of(before, INPUTS, KeepNeededRows())
    result, _ = run_pass(KeepNeededRows(), graph, [tuple(INPUTS)])
    linears = [n.shape for n in result.nodes() if n.op.name == "aten.linear.default"]
    assert linears == [(2, 1, 256), (2, 1, 256)]


def test_declines_where_all_rows_are_needed() -> None:
    def both(o, *a):
        return block(o, *a), o.call("aten.select.int", block(o, *a), 1, 0)

    def reduced(o, x, w, b):
        return o.call("aten.select.int", o.cumsum(block(o, x, w, b), 1), 1, 0)

    def other_rows(o, *a):
        y = block(o, *a)
        return o.add(o.call("aten.select.int", y, 1, 0), o.call("aten.select.int", y, 1, 1))

    def features(o, *a):
        return o.slice(block(o, *a), 2, 0, 8)

    for build in (both, reduced, other_rows, features):
        graph = graph_of(build, INPUTS, KeepNeededRows())
        result, _ = run_pass(KeepNeededRows(), graph)
        assert result is graph, build


def test_declines_causal_attention() -> None:
    def build(o, q):
        y = o.call("aten.scaled_dot_product_attention.default", q, q, q, is_causal=True)
        return o.slice(y, 2, 3, 4)

    graph = graph_of(build, [torch.randn(1, 2, 8, 16)], KeepNeededRows())
    assert run_pass(KeepNeededRows(), graph)[0] is graph


def test_declines_what_does_not_pay() -> None:
    graph = graph_of(
        lambda o, x: o.slice(o.relu(x), 0, 0, 1), [torch.randn(2, 2).t()], KeepNeededRows()
    )
    result, _ = run_pass(KeepNeededRows(), graph)
    target = Target.detect()
    assert graph_seconds(result, target) <= graph_seconds(graph, target)


def test_accuracy_and_idempotence() -> None:
    graph = graph_of(lambda o, *a: o.slice(block(o, *a), 1, 3, 7), INPUTS, KeepNeededRows())
    once, _ = run_pass(KeepNeededRows(), graph, [tuple(INPUTS)])
    again, _ = run_pass(KeepNeededRows(), once)
    assert once is not graph and again is once
    assert names(once)[0] == "aten.slice.Tensor"


def test_gain() -> None:
    graph = graph_of(lambda o, *a: o.slice(block(o, *a), 1, 0, 1), INPUTS, KeepNeededRows())
    result, _ = run_pass(KeepNeededRows(), graph)
    target = Target.parse("cpu:avx512")
    assert graph_seconds(result, target) < graph_seconds(graph, target) / 2


IDS, TABLE = torch.randint(0, 500, (2, 64)), torch.randn(500, 256)


def test_rewrites_rows_of_a_table() -> None:
    def before(o, ids, table, w, b):
        return o.call("aten.select.int", block(o, o.embedding(table, ids), w, b), 1, 0)

    def after(o, ids, table, w, b):
        rows = o.embedding(table, o.slice(ids, 1, 0, 1))
        return o.call("aten.select.int", block(o, rows, w, b), 1, 0)

    check_pass(KeepNeededRows(), before, after, [IDS, TABLE, W, B])


def test_declines_features_of_a_table() -> None:
    def build(o, ids, table):
        return o.slice(o.relu(o.embedding(table, ids)), 2, 0, 8)

    # relu of fewer features, but every row is looked up
    graph = graph_of(build, [IDS, TABLE], KeepNeededRows())
    result, _ = run_pass(KeepNeededRows(), graph, [(IDS, TABLE)])
    found = [n.shape for n in result.nodes() if n.op.name == "aten.embedding.default"]
    assert found == [(2, 64, 256)]
