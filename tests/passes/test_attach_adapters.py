"""attach-adapters: rewrites, one room for one weight, sites, the reasons why it declines."""

from __future__ import annotations

import pytest
import torch

from infopt.compiler.adapters import Adapters
from infopt.compiler.errors import BadOption
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.options import Options
from infopt.compiler.pipeline import PassContext, Pipeline, SiteLimit
from infopt.compiler.report import Report
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from infopt.passes.attach_adapters import SLOTS, AttachAdapters, bank_names
from infopt.passes.pipelines import default_passes

torch.manual_seed(0)
X = torch.randn(3, 5, 8)
CONSTS = {"p_query_weight": torch.randn(6, 8), "p_value_weight": torch.randn(6, 8)}
ROOM = AttachAdapters(rank=2, slots=4, layers=("query", "val*"))


def graph_with(build, x=X, slots=True) -> Graph:
    o = Builder()
    inputs = [o.input("x", TensorType.of(x))]
    if slots:
        inputs.append(o.input(SLOTS, TensorType.dense((x.shape[0],), torch.int64)))
    q, v = (o.const(name, TensorType.of(t)) for name, t in CONSTS.items())
    return Graph(tuple(inputs), (build(o, inputs[0], q, v),), CONSTS, stage=AttachAdapters.stage)


def attached(graph: Graph, pass_=ROOM, limit=None):
    report = Report()
    ctx = PassContext(Target.detect(), (), report, Settings(check=1), limit=limit)
    return Pipeline([pass_], alone=True).run(graph, ctx), report.passes[0]


def both(o, x, q, v):
    return o.add(o.relu(o.linear(x, q)), o.linear(x, v))


def ops(graph: Graph, name: str) -> list:
    return [n for n in graph.nodes() if n.op.name == name]


def test_rewrites_to_the_same_until_something_is_loaded() -> None:
    graph = graph_with(both)
    result, entry = attached(graph)
    assert [s.reason for s in entry.applied] == ["room for 4 adapters of rank 2, 480 bytes"] * 2
    assert len(ops(result, "adapter_linear")) == 2
    slots = torch.tensor([3, -1, 0])
    expected, found = (interpret(g, [X, slots])[0] for g in (graph, result))
    assert torch.equal(found, expected)
    a, b, ranks = (result.consts[name] for name in bank_names("p_query_weight"))
    assert (a.shape, b.shape, ranks.shape) == ((4, 2, 8), (4, 2, 6), (4,))
    a[3], b[3], ranks[3] = torch.randn(2, 8), torch.randn(2, 6), 2
    (found,) = interpret(result, [X, slots])
    weight = CONSTS["p_query_weight"] + b[3].T @ a[3]
    first = torch.relu(X[0] @ weight.T) + X[0] @ CONSTS["p_value_weight"].T
    torch.testing.assert_close(found[0], first)
    assert torch.equal(found[1:], expected[1:])


def test_a_second_run_changes_nothing() -> None:
    result, _ = attached(graph_with(both))
    again, entry = attached(result)
    assert again is result and not entry.sites


def test_sites_can_be_left_out() -> None:
    limit = SiteLimit(1)
    result, _ = attached(graph_with(both), limit=limit)
    assert len(limit.applied) == len(ops(result, "adapter_linear")) == 1


def test_one_weight_that_two_layers_read_has_one_room() -> None:
    result, entry = attached(
        graph_with(lambda o, x, q, v: o.add(o.linear(x, q), o.linear(o.neg(x), q)))
    )
    assert len(entry.applied) == 2
    assert set(result.consts) == {"p_query_weight", *bank_names("p_query_weight")}


def test_rows_in_one_line_find_the_number_of_their_sequence() -> None:
    result, _ = attached(graph_with(lambda o, x, q, v: o.linear(o.reshape(x, [15, 8]), q)))
    a, b, ranks = (result.consts[name] for name in bank_names("p_query_weight"))
    a.normal_(), b.normal_(), ranks.fill_(2)
    weights = [CONSTS["p_query_weight"] + b[s].T @ a[s] for s in (1, 0)]
    (found,) = interpret(result, [X, torch.tensor([1, 0, -1])])
    expected = torch.cat(
        [X[0] @ weights[0].T, X[1] @ weights[1].T, X[2] @ CONSTS["p_query_weight"].T]
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("build", "x", "reason"),
    [
        (lambda o, x, q, v: o.linear(x, o.mul(q, 2.0)), X, "its weight is not a constant"),
        (lambda o, x, q, v: o.linear(o.permute(x, [1, 0, 2]), q), X, "the rows that it reads are"),
        (lambda o, x, q, v: o.to(o.linear(o.to(x, torch.float64), o.to(q, torch.float64)), X.dtype),
         X, "its weight is not a constant"),
    ],
)  # fmt: skip
def test_declines(build, x, reason) -> None:
    graph = graph_with(build, x)
    result, entry = attached(graph)
    (site,) = entry.sites
    assert result is graph and not site.applied and reason in site.reason


def test_other_layers_are_not_chosen() -> None:
    graph = graph_with(both)
    result, entry = attached(graph, AttachAdapters(layers=("key",)))
    assert result is graph and [s.reason for s in entry.sites] == ["not chosen"] * 2


def test_a_graph_without_slots_stays() -> None:
    graph = graph_with(both, slots=False)
    result, entry = attached(graph)
    assert result is graph and not entry.sites


def test_it_runs_where_it_is_asked_for() -> None:
    assert "attach-adapters" not in {p.name for p in default_passes()}
    (found,) = (p for p in default_passes(adapters=Adapters(4, 2, "q, v")) if p.name == ROOM.name)
    assert found == AttachAdapters(4, 2, ("q", "v"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank: expected a positive int, found 0"),
        ({"slots": True}, "slots: expected a positive int, found True"),
        ({"layers": ""}, "layers: expected a pattern or several, found ''"),
        ({"layers": ["q"]}, r"layers: expected a pattern or several, found \['q'\]"),
    ],
)
def test_wrong_options(given, message) -> None:
    with pytest.raises(BadOption, match=message):
        Adapters(**given)
    with pytest.raises(BadOption, match=r"adapters: expected an infopt\.Adapters, found 8"):
        Options(adapters=8)
