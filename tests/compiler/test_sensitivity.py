"""Predicted errors of results, against the errors that are there."""

from __future__ import annotations

import pytest
import torch

from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.sensitivity import relative_errors
from infopt.compiler.types import TensorType


@pytest.fixture
def chain():
    """x -> gelu(x w) v, and variants of both products with other weights."""
    torch.manual_seed(0)
    x, w, v = torch.randn(12, 32), torch.randn(48, 32) / 6, torch.randn(20, 48) / 7
    tensors = {"w2": w + 1e-3 * torch.randn_like(w), "v2": v + 1e-2 * torch.randn_like(v)}
    o = Builder()
    node = o.input("x", TensorType.of(x))
    consts = {
        name: o.const(name, TensorType.of(t)) for name, t in {"w": w, "v": v, **tensors}.items()
    }
    first = o.linear(node, consts["w"])
    hidden = o.gelu(first)
    last = o.linear(hidden, consts["v"])
    graph = Graph((node,), (last, o.sum(last)), {"w": w, "v": v})
    variants = {
        first: [o.linear(node, consts["w2"]), first],
        last: [o.linear(hidden, consts["v2"])],
    }
    return graph, variants, tensors, x, o


def test_predicts_each_error_alone(chain):
    graph, variants, tensors, x, o = chain
    found = relative_errors(graph, [x], variants, tensors, probes=200)
    want = interpret(graph, [x])
    for node, others in variants.items():
        for other, predicted in zip(others, found[node], strict=True):
            changed = graph.map(
                lambda n, args, a=node, b=other: b if n is a else o.rebuild(n, args)
            )
            got = interpret(changed.with_consts(tensors), [x])
            errors = [((g - w).norm() / w.norm()).item() for g, w in zip(got, want, strict=True)]
            assert predicted == pytest.approx(sum(e**2 for e in errors) ** 0.5, rel=0.25)


def test_the_same_seed_gives_the_same(chain):
    graph, variants, tensors, x, _ = chain
    runs = [relative_errors(graph, [x], variants, tensors, probes=4, seed=7) for _ in range(2)]
    assert runs[0] == runs[1]
    assert relative_errors(graph, [x], variants, tensors, probes=4, seed=8) != runs[0]


def test_what_no_result_reads_has_no_error(chain):
    graph, variants, tensors, x, o = chain
    only_integers = Graph(graph.inputs, (o.argmax(graph.outputs[0], 1),), dict(graph.consts))
    found = relative_errors(only_integers, [x], variants, tensors)
    assert all(error == 0 for errors in found.values() for error in errors)


def test_variants_may_have_nodes_of_their_own(chain):
    """v' h as (v' h) through a node that only the variant reads."""
    graph, variants, tensors, x, o = chain
    _, last = variants
    direct = {last: variants[last]}
    through = {last: [o.mul(o.mul(direct[last][0], 2.0), 0.5)]}
    expected = relative_errors(graph, [x], direct, tensors)
    assert relative_errors(graph, [x], through, tensors)[last] == pytest.approx(expected[last])
